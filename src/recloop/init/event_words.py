"""English words of event names in many languages, and names of trackers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

_TRANSLATIONS: Final[Mapping[str, str]] = {
    "purchase": "kauf käufe gekauft kaufen bestellung bestellungen bestellt bezahlt bezahlung verkauf achat achats acheté "
    "acheter commande commandes commandé payé paiement compra compras comprado comprar pedido pedidos pagado pago "
    "acquisto acquisti acquistato ordine ordini ordinato pagato pagamento comprou aankoop aankopen gekocht bestelling "
    "besteld betaald betaling koop zakup zakupy kupno kupiono zakupiono zamówienie opłacone покупка покупки купил купила "
    "куплено заказ заказы оплата оплачено satınalma satın satin sipariş alım 购买 购买成功 下单 支付 付款 成交 買う 購入 注文 決済",
    "cart": "warenkorb einkaufswagen einkaufskorb panier carrito cesta carrello carrinho winkelwagen winkelmandje mandje "
    "koszyk koszyka koszyku корзина корзину корзине корзины sepet sepete sepetten 加购 加购物车 购物车 加入购物车 カート かご",
    "wishlist": "merkliste merkzettel wunschliste wunschzettel souhaits envies deseos desideri desejos verlanglijst "
    "verlanglijstje życzeń 心愿单 ほしい物リスト",
    "favorite": "favorit favoriten favoris favori favorito favoritos preferiti preferito favoriet favorieten ulubione "
    "ulubionych избранное избранного favorilere favoriler 收藏 加收藏 お気に入り",
    "like": "gefällt aime aimé gusta piace curtir curtida curtiu leuk lubię polubienie нравится лайк лайкнул beğen beğeni "
    "beğendi 点赞 喜欢 いいね",
    "dislike": "dizlayk дизлайк beğenme 不喜欢 不感兴趣 屏蔽 踩",
    "share": "teilen geteilt partager partagé compartir compartido condividi condiviso compartilhar compartilhado delen "
    "gedeeld udostępnij поделиться paylaş 分享 转发 シェア",
    "follow": "folgen gefolgt suivre seguir seguire volgen подписка takip 关注 フォロー",
    "rating": "bewertung bewertet évaluation avis valoración valutazione avaliação beoordeling ocena оценка отзыв 评分 评价 評価",
    "download": "heruntergeladen téléchargement descarga scaricato 下载 ダウンロード",
    "view": "ansicht ansichten angesehen aufruf aufrufe aufgerufen gesehen besuch seitenaufruf produktansicht vue vues vu "
    "consultation consulté visite vista vistas visto visita visualizzazione visualizzato visualização visualizou weergave "
    "bekeken bezoek wyświetlenie odsłona obejrzenie просмотр просмотры просмотрено посещение görüntüleme görüntülendi "
    "ziyaret 浏览 查看 观看 访问 閲覧 視聴",
    "click": "klick klicks geklickt angeklickt clic clics cliqué clique clicou klik klikken geklikt kliknięcie клик клики "
    "tıklama tıkladı 点击 クリック",
    "impression": "eingeblendet einblendung angezeigt affichage affiché impresión impressione impressão vertoning показ "
    "показы gösterim 曝光 展示 展现 表示 インプレッション",
    "search": "suche gesucht recherche recherché búsqueda ricerca busca pesquisa zoeken gezocht wyszukiwanie поиск arama 搜索 検索",
    "return": "retoure retouren retourniert rückgabe rücksendung zurückgegeben retour retours devolución devuelto reso resi "
    "devolução retourzending zwrot zwroty возврат возвраты iade 退货 退换货 返品",
    "refund": "erstattet erstattung rückerstattung remboursement remboursé reembolso reembolsado rimborso rimborsato estorno "
    "estornado terugbetaling terugbetaald 退款 返金",
    "cancel": "storniert stornierung storno abgebrochen annulé annulation cancelado cancelación annullato annullamento "
    "cancelamento geannuleerd annulering anulowano anulowane отмена отменен отменён iptal 取消 取消订单 キャンセル",
    "remove": "entfernt entfernen gelöscht löschen retiré retirer supprimé supprimer eliminado eliminar quitar quitado "
    "rimosso rimuovere removido remover removeu verwijderd verwijderen usunięto usuń usunięcie удаление удалено удалить "
    "убрал çıkarma çıkarıldı kaldır kaldırıldı silindi 移除 删除 移出 削除",
    "not": "nicht kein pas нет не nie niet não non değil",
    "failed": "fehlgeschlagen échoué échec fallido fallito falhou mislukt неудачно başarısız 失败 失敗",
    "add": "hinzugefügt hinzufügen gelegt ajout ajouté ajouter añadir añadido agregar agregado aggiunto aggiungi aggiunta "
    "adicionar adicionado adicionou toegevoegd toevoegen dodano dodaj dodanie добавление добавлено добавить ekle eklendi "
    "加入 添加 追加",
    "begin": "begonnen gestartet commencé iniciado iniciar iniziato iniciou",
    "list": "liste lista lijst список 列表",
}  # fmt: skip
"""Words of other languages by the English word with their meaning."""

TRACKER_NAMES: Final[Mapping[str, str]] = {
    "purchase": "ecommerce order|track transaction|clickout item|in app purchase",
    "strong": "product added|item added|add payment info|add shipping info|payment info entered|payment info submitted|"
    "checkout shipping info submitted|checkout address info submitted|checkout contact info submitted|cart add|"
    "customize product|cart updated|product reviewed",
    "weak": "select item|product clicked|view content|view item|screen view|detail",
    "shown": "view item list|view list|product list viewed|product list filtered|collection viewed|view promotion|"
    "select promotion|promotion viewed|promotion clicked|view home|scroll|search submitted|checkout step viewed|"
    "order updated|order shipped|order delivered|order fulfilled|order status changed|change of sort order|sort order|"
    "filter selection|complete registration|user engagement|first visit|session start|coupon entered|coupon applied|"
    "coupon denied|coupon removed|alert item shown|payment info|payment method selected|shipping method selected",
}  # fmt: skip
"""Names of GA4, Segment, RudderStack, Matomo, Shopify, Criteo, Meta and others, by `Meaning`, in words."""


def folded(word: str) -> str:
    """Lower-case word without accents."""
    decomposed = unicodedata.normalize("NFKD", word.lower())
    kept = "".join(sign for sign in decomposed if not unicodedata.combining(sign))
    return unicodedata.normalize("NFC", kept)


def _is_cjk(text: str) -> bool:
    return re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", text) is not None


ENGLISH: Final[Mapping[str, str]] = {
    folded(word): english for english, words in _TRANSLATIONS.items() for word in words.split()
}
"""English word by folded word of another language."""
_CJK_PATTERN: Final = re.compile(
    "|".join(sorted((folded(word) for word in ENGLISH if _is_cjk(word)), key=len, reverse=True))
)
TRACKER_MEANINGS: Final[Mapping[str, str]] = {
    name: meaning for meaning, names in TRACKER_NAMES.items() for name in names.split("|")
}
"""Value of `Meaning` by a tracker's name in words."""


def english_words(word: str) -> list[str]:
    """English words of one word; unknown words stay.

    Chinese and Japanese texts are split at known words.
    """
    plain = folded(word)
    if _is_cjk(plain):
        return [ENGLISH[match] for match in _CJK_PATTERN.findall(plain)] or [word]
    return [ENGLISH.get(plain, word)]

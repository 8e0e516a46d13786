"""Order status words in many languages: valid, undone or not paid yet."""

from __future__ import annotations

import re
from typing import Final, Literal

from recloop.init.event_words import folded

Status = Literal["valid", "undone", "pending", "unknown"]

_WORDS: Final[dict[Status, str]] = {
    "undone": "refunded refund cancelled canceled cancel cancelled_by voided void failed failure expired declined rejected "
    "returned return chargeback fraud trash abandoned storniert storno abgebrochen erstattet retourniert retoure "
    "fehlgeschlagen annule annulee rembourse remboursee echoue cancelado cancelada reembolsado reembolsada devuelto "
    "devuelta fallido annullato annullata rimborsato rimborsata fallito estornado estornada devolvido geannuleerd "
    "terugbetaald mislukt anulowane anulowano zwrocone zwrot отменен отменён отменено возвращен возвращён возврат iptal "
    "iade 已取消 已退款 已退货 退款 退货 取消 交易关闭 已关闭 キャンセル 返品 返金",
    "pending": "pending hold holded onhold awaiting unpaid open draft authorized review processing_payment quote offen "
    "ausstehend unbezahlt wartend attente pendiente attesa pendente wachten openstaand oczekujace ожидает beklemede bekliyor "
    "待付款 待支付 未付款 未払い 支払い待ち",
    "valid": "paid complete completed processing shipped delivered fulfilled dispatched sent success successful succeeded "
    "approved confirmed captured settled done finished bezahlt abgeschlossen versendet versandt geliefert bearbeitung "
    "erledigt ausgeliefert paye payee termine terminee livre livree expedie expediee confirme pagado pagada completado "
    "completada enviado enviada entregado entregada procesando pagato pagata completato completata spedito spedita "
    "consegnato consegnata pago paga concluido concluida entregue betaald voltooid verzonden geleverd oplacone zrealizowane "
    "wysłane dostarczone оплачен оплачено выполнен выполнено доставлен доставлено odendi tamamlandı kargolandı 已付款 已支付 "
    "已完成 已发货 已签收 交易成功 完成 支払い済み 発送済み 完了",
}  # fmt: skip
STATUS_WORDS: Final[dict[str, Status]] = {
    folded(word): status for status, words in _WORDS.items() for word in words.split()
}
NEGATIONS: Final = {"not", "nicht", "non", "no", "niet", "nie", "не", "nao", "un"}
PARTIAL: Final = {"partial", "partially", "teilweise", "partiellement", "parcialmente", "parzialmente", "gedeeltelijk"}


def order_status(text: str) -> Status:
    """Meaning of an order status, by its whole words.

    ``partially_refunded`` is valid, because most of the order was kept. ``not paid`` is pending. A number is unknown.
    """
    words = [folded(word) for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text))]
    statuses = {STATUS_WORDS[word] for word in words if word in STATUS_WORDS}
    word_set = set(words)
    if "undone" in statuses:
        return "valid" if word_set & PARTIAL else "undone"
    if "pending" in statuses or (statuses and word_set & NEGATIONS):
        return "pending"
    return "valid" if "valid" in statuses else "unknown"

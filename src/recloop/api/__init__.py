"""Python API: fit on a data frame, recommend, save a bundle, open a project.

rec = recloop.fit(events)                       # pandas, Polars or Arrow; results are of the same kind
rec.recommend(["u1", "u2"], n=10)
shop = recloop.open("shop"); shop.update(); shop.evaluate()
"""

"""What every service measures: one module per concern, one class of metrics each.

The classes own nothing but Prometheus metrics of the registry they are given; services count in
them, or set them when they are asked (`exposition.Exposition.on_scrape`). Names follow Prometheus:
base units, ``_total`` on counters, no label whose values grow without bound.
"""

"""Run records: what a run leaves behind, and where its numbers come from. Nothing that shows is here."""

from .barriers import METRICS, barrier, drop
from .origin import portable, provenance, recorded
from .run_record import (
    CLOSENESS,
    curve_entry,
    curve_key,
    curve_of,
    matching_arrays,
    point_at,
    read_arrays,
    read_record,
    read_records,
    record,
    validate,
    write_record,
)

"""Stacks on disk: a folder of plain tars with a journal, which survives being interrupted at any point.

Needs numpy and nothing else, so that a store can be read, verified or mended where there is no torch.
"""

from mapstack.store.compression import COMPRESSIONS
from mapstack.store.disk import check_space
from mapstack.store.failures import Failure, record_failure
from mapstack.store.keys import member_name
from mapstack.store.reader import Store
from mapstack.store.records import Packed, Record
from mapstack.store.recovery import Discarded, Recovered
from mapstack.store.session import StoreSession, Totals, finish, open_store_for_writing
from mapstack.store.verify import Verification, verify
from mapstack.store.writer import MAX_PART_BYTES, StoreWriter

__all__ = [
    "COMPRESSIONS",
    "MAX_PART_BYTES",
    "Discarded",
    "Failure",
    "Packed",
    "Record",
    "Recovered",
    "Store",
    "StoreSession",
    "StoreWriter",
    "Totals",
    "Verification",
    "check_space",
    "finish",
    "member_name",
    "open_store_for_writing",
    "record_failure",
    "verify",
]

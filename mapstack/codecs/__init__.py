"""How a stack becomes the arrays of a record, and back: computed where the stack lies, so that little leaves a GPU."""

from mapstack.codecs.encoding import CODECS, Encoding, decode_factors
from mapstack.codecs.rounding import weighted_sums

__all__ = ["CODECS", "Encoding", "decode_factors", "weighted_sums"]

"""hybridgen inside transformers: a model that is faster, and a decoding method.

Both let transformers' own `generate` prepare everything, the generation config, the logits
processors, the stopping criteria, and take over where it would begin to decode.
"""

from hybridgen.bridge.accelerated import Accelerated, accelerate
from hybridgen.bridge.decoding import hybrid_generate

__all__ = ["Accelerated", "accelerate", "hybrid_generate"]

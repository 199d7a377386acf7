"""Verification rules: which drafted tokens stay, and which token follows them.

| rule        | output                          | draft laws           | chains | trees |
|-------------|---------------------------------|----------------------|--------|-------|
| `greedy`    | plain greedy decoding's         | any                  | yes    | yes   |
| `rejection` | distributed as the target's     | sampled, one-hot     | yes    | no    |
| `block`     | distributed as the target's     | sampled, one-hot     | yes    | no    |
| `coupled`   | plain sampling's with that key  | any                  | yes    | yes   |
| `typical`   | LOSSY, another law              | any                  | yes    | no    |
"""

from specjax.verify.acceptance import Rule
from specjax.verify.block import block
from specjax.verify.coupled import coupled
from specjax.verify.greedy import greedy
from specjax.verify.rejection import rejection
from specjax.verify.typical import typical

__all__ = ['Rule', 'block', 'coupled', 'greedy', 'rejection', 'typical']

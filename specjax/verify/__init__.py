"""Verification rules: which drafted tokens stay, and which token follows them.

| rule           | output                         | draft laws                       | trees |
|----------------|--------------------------------|----------------------------------|-------|
| `greedy`       | plain greedy decoding's        | any                              | yes   |
| `rejection`    | distributed as the target's    | sampled, one-hot                 | no    |
| `block`        | distributed as the target's    | sampled, one-hot                 | no    |
| `recursive`    | distributed as the target's    | sampled (± replacement), one-hot | yes   |
| `k_sequential` | distributed as the target's    | sampled with replacement         | yes   |
| `traversal`    | distributed as the target's    | sampled (± replacement), one-hot | yes   |
| `coupled`      | plain sampling's with that key | any                              | yes   |
| `typical`      | LOSSY, another law             | any                              | no    |

`named` finds a rule by its name; `default` is the one for a request that names none.
"""

from specjax.verify.block import block
from specjax.verify.choice import default, named
from specjax.verify.coupled import coupled
from specjax.verify.greedy import greedy
from specjax.verify.k_sequential import k_sequential
from specjax.verify.recursive import recursive
from specjax.verify.rejection import rejection
from specjax.verify.rule import Rule
from specjax.verify.traversal import traversal
from specjax.verify.typical import typical

__all__ = [
    'Rule',
    'block',
    'coupled',
    'default',
    'greedy',
    'k_sequential',
    'named',
    'recursive',
    'rejection',
    'traversal',
    'typical',
]

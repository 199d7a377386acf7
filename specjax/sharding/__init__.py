"""Running on many devices: layouts, trees of shardings, plans that compile ahead."""

from specjax.layout import Layout, fitted
from specjax.sharding.presets import AXES, PRESETS, Layouts, counted_devices, make
from specjax.sharding.trees import (
    abstract,
    abstract_params,
    constrain,
    init_params,
    like_params,
    params_shardings,
    place,
    place_head,
    put,
    put_array,
    put_batch,
    shardings,
)

__all__ = [
    'AXES',
    'PRESETS',
    'Layout',
    'Layouts',
    'abstract',
    'abstract_params',
    'constrain',
    'counted_devices',
    'fitted',
    'init_params',
    'like_params',
    'make',
    'params_shardings',
    'place',
    'place_head',
    'put',
    'put_array',
    'put_batch',
    'shardings',
]

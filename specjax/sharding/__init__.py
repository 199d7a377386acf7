"""Where arrays lie on many devices: layouts by name, trees of shardings, processes."""

from specjax import _moved
from specjax.sharding.layout import Layout, fitted
from specjax.sharding.presets import AXES, PRESETS, Layouts, counted_devices, make
from specjax.sharding.trees import (
    abstract,
    constrain,
    like_params,
    params_shardings,
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
    'constrain',
    'counted_devices',
    'fitted',
    'like_params',
    'make',
    'params_shardings',
    'place_head',
    'put',
    'put_array',
    'put_batch',
    'shardings',
]

__getattr__ = _moved.names(__name__)

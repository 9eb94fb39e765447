"""Layer types of steering-vectors: modules at whose output directions are read and added, and our sites for them."""

from __future__ import annotations

from ..errors import LensError
from ..model.anatomy import anatomy_of

# The norm before the MLP gives the MLP's input.
LAYER_TYPES = {
    "decoder_block": "resid_post",
    "self_attn": "attn_out",
    "mlp": "mlp_out",
    "post_attention_layernorm": "post_ln",
}


def check_layer_type(name: str, layer_type: str | None, family: str) -> None:
    """Refuse a family in which the site for a layer type is another place than the module's output.

    Args:
        name: the vector's.
        layer_type: what its direction was read at; None if it is not another program's.

    Raises:
        LensError: norms follow this family's sublayers, so the module's output is elsewhere, or no site at all.
    """
    if layer_type in (None, "decoder_block") or not anatomy_of(family).norms_follow:
        return
    read = f"{name!r} was read at the output of {layer_type}"
    if layer_type == "post_attention_layernorm":
        raise LensError(f"{read}, which in a {family} is attn_out, not post_ln; site attn_out would do")
    raise LensError(f"{read}, which in a {family} is before a norm, where no site is; one read at decoder_block would do")

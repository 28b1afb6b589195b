"""Drawn parts of model configs: every combination of what the parts allow."""

from hypothesis import strategies as st

FREQUENCIES = {"short_factors": 1.25, "long_factors": 3.0}
"""The divisor of every frequency, of longrope."""
SCALINGS = (
    {"kind": "none"},
    {"kind": "linear", "factor": 3.0},
    {"kind": "llama3", "factor": 8.0, "original_max_seq_len": 12},
    {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 8},
    {"kind": "longrope", "factor": 2.0, "original_max_seq_len": 10},
)


@st.composite
def drawn_parts(draw, head_dim, n_layers, norms_all_heads=False):
    """The parts of a config of any family, as mappings.

    Args:
        draw: Given by hypothesis.
        head_dim: Size of a head.
        n_layers: Number of blocks.
        norms_all_heads: Whether a norm over all heads is among them, which only some growths keep.
    """
    fractions = [f for f in (1.0, 0.5, 0.25) if int(head_dim * f) % 2 == 0 and int(head_dim * f)]
    kind = draw(st.sampled_from(["layernorm", "rmsnorm"]))
    window = draw(st.sampled_from([None, 3, 6]))
    fraction, scaling = draw(st.sampled_from(fractions)), dict(draw(st.sampled_from(SCALINGS)))
    if scaling["kind"] == "longrope":
        scaling |= {k: [v] * int(head_dim * fraction / 2) for k, v in FREQUENCIES.items()}
    qk_norms = ["none", "head", *(["full"] if norms_all_heads else [])]
    numbers = st.sampled_from([1.0, 0.4, 1.7])
    parts = {
        "attention": {
            "bias": draw(st.sampled_from(["none", "qkv", "all"])),
            "qk_norm": draw(st.sampled_from(qk_norms)),
            "scale": draw(st.sampled_from([None, 0.3])),
            "softcap": draw(st.sampled_from([None, 1.5])),
            "window": window,
        },
        "rope": {
            "theta": 100.0,
            "fraction": fraction,
            "scaling": scaling,
            "interleaved": draw(st.booleans()),
        },
        "norm": {
            "kind": kind,
            "bias": draw(st.booleans()),
            "parallel_residual": draw(st.booleans()),
            "residual_multiplier": draw(numbers),
            "shared": draw(st.booleans()),
            "gain_offset": draw(st.sampled_from([0.0, 1.0])),
        },
        "feed_forward": {
            "kind": draw(st.sampled_from(["gelu", "swiglu", "geglu_tanh", "relu2"])),
            "bias": draw(st.booleans()),
        },
        "routing": {"renormalize": True},
        "embedding": {
            "positions": draw(st.sampled_from(["none", "none", "learned"])),
            "multiplier": draw(numbers),
            "scale_by_width": draw(st.booleans()),
            "logit_multiplier": draw(numbers),
            "logit_softcap": draw(st.sampled_from([None, 2.0])),
            "head_bias": draw(st.booleans()),
        },
        "layers": {"rotary": draw(st.sampled_from([[], [True, False][:n_layers]]))},
    }
    if kind == "rmsnorm":
        parts["norm"]["placement"] = draw(st.sampled_from(["pre", "post", "both"]))
    if parts["embedding"]["positions"] == "learned":
        parts["embedding"]["position_offset"] = draw(st.sampled_from([0, 2]))
    norm = parts["norm"]
    norm["shared"] &= norm["parallel_residual"] and norm.get("placement") != "post"
    if window is not None:
        parts["rope"]["window_theta"] = draw(st.sampled_from([None, 30.0]))
        parts["layers"]["attention"] = draw(st.sampled_from([[], ["window", "full"][:n_layers]]))
    return parts

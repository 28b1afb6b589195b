"""Drawn parts of model configs: every combination of what the parts allow."""

from hypothesis import strategies as st

SCALINGS = (
    {"kind": "none"},
    {"kind": "linear", "factor": 3.0},
    {"kind": "llama3", "factor": 8.0, "original_max_seq_len": 12},
    {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 8},
)


@st.composite
def drawn_parts(draw, head_dim):
    """The parts of a config of any family with heads of this size, as mappings."""
    fractions = [f for f in (1.0, 0.5, 0.25) if int(head_dim * f) % 2 == 0 and int(head_dim * f)]
    return {
        "attention": {
            "bias": draw(st.sampled_from(["none", "qkv", "all"])),
            "qk_norm": draw(st.sampled_from(["none", "head"])),
        },
        "rope": {
            "theta": 100.0,
            "fraction": draw(st.sampled_from(fractions)),
            "scaling": draw(st.sampled_from(SCALINGS)),
        },
        "norm": {
            "kind": draw(st.sampled_from(["layernorm", "rmsnorm"])),
            "bias": draw(st.booleans()),
            "parallel_residual": draw(st.booleans()),
        },
        "feed_forward": {
            "kind": draw(st.sampled_from(["gelu", "swiglu"])),
            "bias": draw(st.booleans()),
        },
    }

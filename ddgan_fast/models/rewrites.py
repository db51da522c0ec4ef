"""Exact rewrites: other orders of the same arithmetic, each of which can be turned off."""

from __future__ import annotations

from dataclasses import dataclass, fields

_WORDS = ("auto", "all", "none")


@dataclass(frozen=True)
class Rewrites:
    """Which rewrites a network uses; the defaults are those of "auto".

    "auto" leaves out what was not measured to be faster: on a CPU joint_d made no difference, and
    on a GPU it is untried.

    Attributes:
        skip_low: the 1x1 shortcut of an up block runs before the filter, on a quarter of the
            pixels; published: after it.
        joint_styles: the projections of latent and timestep in all blocks are one matrix product
            each; published: one for each block.
        sdpa: attention is torch's fused operator; published: products and an explicit softmax.
        joint_d: the discriminator sees real and fake images as one batch in steps without R1;
            published: in two passes. Saves launches; one backward pass keeps both either way.
    """

    skip_low: bool = True
    joint_styles: bool = True
    sdpa: bool = True
    joint_d: bool = False

    @classmethod
    def parse(cls, text: str) -> Rewrites:
        """The rewrites of ``run.rewrites``: "auto", "all", "none", or names with commas.

        Raises:
            ValueError: an unknown name.
        """
        names = [field.name for field in fields(cls)]
        chosen = [word.strip() for word in text.split(",")]
        if chosen == ["auto"]:
            return cls()
        if chosen in (["all"], ["none"]):
            return cls(**dict.fromkeys(names, chosen == ["all"]))
        for name in chosen:
            if name not in names:
                raise ValueError(
                    f'run.rewrites is "{text}": there is no rewrite {name!r}; choose '
                    f"{', '.join(names)} (several with commas), or one of {', '.join(_WORDS)}."
                )
        return cls(**{name: name in chosen for name in names})

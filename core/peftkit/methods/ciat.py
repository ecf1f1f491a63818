"""Counter-interference adapters: a set of parallel adapters for each language (Zhu et al. 2021, arXiv:2104.08154)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from peftkit.errors import PeftkitError
from peftkit.keys import KEY, MOST, Keys
from peftkit.layers.bottleneck import Activation, Bottleneck
from peftkit.layers.keyed import Keyed
from peftkit.layout import Layout, Site, parse_layers
from peftkit.method import Method
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class Ciat(Method, name="ciat"):
    """The embedding e gives e + A(e), and each attention and feed-forward block f gives f(x) + A(x); x [..., width].

    A(x) = U act(D LN(x) + b) + c with a layer norm of its own; D [bottleneck, width] is drawn from the Kaiming uniform
    distribution (a = sqrt 5), b, U [width, bottleneck] and c start at zero, so that the start is the base. With `keys`
    there is such a set of adapters for each of them, and every token passes through that of its example's key; an
    example with another key, or none, is refused. Each set starts otherwise. The paper has encoders and decoders of
    translation, a set for each pair of languages, and x before the block's norm where that stands behind the block.
    """

    port: ClassVar[str] = "embedding + hidden"
    family: ClassVar[str] = "adapter"
    mergeable: ClassVar[bool] = False
    paper: ClassVar[str] = "Zhu et al. 2021, arXiv:2104.08154"
    summary: ClassVar[str] = (
        "Runs a small trainable bottleneck behind the embedding and one beside each attention and feed-forward block, "
        "each behind a norm of its own. With keys of the examples, such as languages, there is a set for each."
    )
    default_learning_rate: ClassVar[float] = 0.01
    size: ClassVar[str | None] = "bottleneck"

    keys: tuple[str, ...] = ()
    """The keys of examples, such as de and fr, with a set of adapters for each; without them one set is for all."""
    field: str = KEY
    """The field of an example that has its key: in your own files `key`, or what `dataset.columns` reads as that."""
    bottleneck: Annotated[int, Ge(1)] = 64
    """Inner size of each adapter; the paper has 128."""
    activation: Activation = "relu"
    """Function between D and U."""
    embedding: bool = True
    """Whether the embedding has an adapter."""
    layers: tuple[int, ...] | str | None = None
    """Layers with adapters, such as 0-3,8; all by default."""

    def __post_init__(self) -> None:
        twice = next((key for number, key in enumerate(self.keys) if key in self.keys[:number]), None)
        if twice is not None:
            raise PeftkitError(f"{self.name}: keys: '{twice}' is there twice: name each key once.")
        if len(self.keys) > MOST:
            raise PeftkitError(f"{self.name}: keys: found {len(self.keys)}; allowed: at most {MOST}.")

    @property
    def keys_read(self) -> Keys | None:
        return Keys(self.field, self.keys) if self.keys else None

    def sites(self, layout: Layout) -> list[Site]:
        layers, kinds = parse_layers(self.layers), {part.kind for part in layout.parts}
        parts = [site for kind in ("attention", "mlp") if kind in kinds for site in layout.hidden(kind, layers)]
        return [*([layout.embedding()] if self.embedding else []), *parts]

    def build(self, site: Site) -> Adapter:
        keys = self.keys_read
        return self._adapter(site) if keys is None else Keyed([self._adapter(site) for _ in keys.names], keys)

    def _adapter(self, site: Site) -> Bottleneck:
        beside = site.role != "embedding"
        return Bottleneck(site, self.bottleneck, self.activation, beside=beside, normed=True)

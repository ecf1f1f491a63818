"""What a recipe says of its data; each key has its type, bounds, default and meaning."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from peftkit.recipe.section import Count, PathText, Section, Seed, Text


class DatasetSection(Section):
    """What to learn from."""

    short: ClassVar[str | None] = "name"
    name: Text
    """A task, whose data come from `path` or the hub, or `bundled/` and a task, for the small set in the package."""
    path: PathText | None = None
    """The folder or file with the data; relative to the folder in which the command runs."""
    source: Literal["auto", "path", "hub", "bundled"] = "auto"
    """Where the data come from; `auto` takes the path if there is one, else the hub, else the bundled set."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The part of the training split to use, drawn at random."""
    limit: Count | None = None
    """Use at most so many training examples."""
    seed: Seed = 0
    """Draws the `fraction` or `limit`."""
    template: Literal["auto", "plain", "chat"] = "auto"
    """How turns become one text; `auto` takes the model's chat template where it has one."""
    system: Literal["keep", "fold"] = "keep"
    """`fold` puts a system turn in front of the first user's, for chat templates that know none."""
    special: Literal["keep", "escape", "refuse"] = "keep"
    """Special tokens that stand in texts of the data, such as `<|im_end|>`: `keep` reads them as such, and tells it;
    `escape` reads them as plain text; `refuse` ends at the first one."""
    columns: dict[Text, Text] | None = None
    """For your own files, the keys they have: `{prompt: question, completion: answer}`."""
    ignore: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] | None = None
    """For your own files, keys of records and messages that are left out on purpose."""
    validation: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The part of the training split's inputs that is held out as the validation split, drawn by `seed`."""

    streaming: bool = False
    """Read the training data on and on instead of encoding all of them first, in the order of their files and from the
    front again behind the last example; for what never ends or is too large for the disk, with `train.max_steps`."""
    buffer: Count | None = None
    """For streamed data, shuffle each so many neighbouring examples; null keeps the order."""

    @model_validator(mode="after")
    def _path_where_read(self) -> DatasetSection:
        if self.source == "path" and self.path is None:
            raise ValueError("found source 'path' without a path; allowed: name the folder or file in 'path'")
        if self.source in ("hub", "bundled") and self.path is not None:
            raise ValueError(f"found a path and source '{self.source}'; allowed: one of them, or source 'path'")
        return self

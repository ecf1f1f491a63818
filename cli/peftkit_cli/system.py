"""What the system answers, in words: no memory, no permission, no space, and every other refusal that has a number."""

from __future__ import annotations

import errno

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
"""What torch's errors say for which it has no type."""
LESS_MEMORY = (
    "Lower train.batch_tokens or train.max_length, raise train.accumulation to keep the batch, or set "
    "train.gradient_checkpointing=true, or train.memory=auto; where the size of a method is what is too large (a rank, "
    "a length), choose a smaller one."
)
ADVICE = {
    errno.EACCES: "Give yourself the permission, or name another place.",
    errno.EPERM: "Give yourself the permission, or name another place.",
    errno.ENOENT: "It was there or was to be there: check the name.",
    errno.ENOSPC: "Make space, or name another place.",
    errno.EROFS: "Name another place.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
    errno.ELOOP: "A link there leads to itself.",
}


def told(error: Exception) -> str | None:
    """Return what the system's answer was to what was asked of it; None where the error is none of the system's."""
    if lacks_memory(error):
        first = str(error).partition("\n")[0]
        return f"the memory ran out ({first or 'no more is known'}). {LESS_MEMORY}"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        place = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        advice = ADVICE.get(error.errno, "")
        return f"{place or 'the system refused'}: {error.strerror}.{advice and ' '}{advice}"
    return None


def lacks_memory(error: Exception) -> bool:
    """Say whether there was too little memory, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)

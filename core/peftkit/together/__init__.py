"""Several runs over one frozen base: their tokens go through the model together, each adapter on its own."""

from peftkit.together.session import Failed, Job, Stopped, train_together

__all__ = ["Failed", "Job", "Stopped", "train_together"]

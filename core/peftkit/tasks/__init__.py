"""One file per task: its official files, its prompt, its scores."""

from peftkit.tasks.task import TASKS, Task

__all__ = ["TASKS", "Task"]

"""Thread that runs tasks one after another, so that training does not wait for slow ones."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

TaskT = TypeVar("TaskT")

_MOST_WAITING = 32


class Background(Generic[TaskT]):
    """Run tasks in a daemon thread, which starts with the first task.

    Args:
        work: function that runs a task; it must not raise.
    """

    def __init__(self, work: Callable[[TaskT], None]):
        self._work = work
        self._thread: threading.Thread | None = None
        self._tasks: queue.SimpleQueue[TaskT | None] | None = None

    def put(self, task: TaskT) -> bool:
        """Queue a task. If too many are waiting, drop it and return False."""
        if self._tasks is None:
            self._tasks = queue.SimpleQueue()
            self._thread = threading.Thread(target=self._run, args=(self._tasks,), name="attnwatch", daemon=True)
            self._thread.start()
        if self._tasks.qsize() >= _MOST_WAITING:
            return False
        self._tasks.put(task)
        return True

    def finish(self, seconds: float) -> bool:
        """Wait at most `seconds` for all tasks, and return whether they are done. Others still run afterwards."""
        thread, tasks = self._thread, self._tasks
        self._thread = self._tasks = None
        if thread is None or tasks is None:
            return True
        tasks.put(None)
        thread.join(seconds)
        return not thread.is_alive()

    def _run(self, tasks: "queue.SimpleQueue[TaskT | None]") -> None:
        while (task := tasks.get()) is not None:
            self._work(task)

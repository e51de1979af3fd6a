"""What a run does while its agent learns, besides checkpoints and the live display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents import MultiTaskAlgorithm
from experiments.training.evaluation import CURVE_SEED, evaluate
from mtrl.rl.tasks import TaskLike
from mtrl.states import Whole, check_form


class CurveEvaluation(BaseCallback):
    """Evaluates greedily every `interval` environment steps and logs `eval/<task>/return` and `eval/mean_return`.

    Args:
        tasks: the tasks.
        interval: environment steps between evaluations.
        episodes: episodes of each task in one evaluation.
    """

    def __init__(self, tasks: Sequence[TaskLike], interval: int, episodes: int) -> None:
        super().__init__()
        self._tasks = tasks
        self._interval = interval
        self._episodes = episodes
        self._next = interval

    def state_dict(self) -> dict[str, Any]:
        """The environment step at which the next evaluation is due."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is no step at which an evaluation may be due.
        """
        check_form("the step of the next evaluation", state, {"next": Whole()})
        due = state["next"]
        if due % self._interval or not 0 < due <= self.model.num_timesteps + self._interval:
            raise ValueError(f"the next evaluation is at step {due:,}, and the interval is {self._interval:,}")
        self._next = due

    def _on_step(self) -> bool:
        return True  # the evaluation waits for the end of the rollout, when the step has been stored

    def _on_rollout_end(self) -> None:
        if self.num_timesteps < self._next:
            return
        self._next += self._interval
        assert isinstance(self.model, MultiTaskAlgorithm)
        evaluation = evaluate(self.model, self._tasks, self._episodes, CURVE_SEED)
        for task, result in evaluation.tasks.items():
            self.logger.record(f"eval/{task}/return", result.mean)
        self.logger.record("eval/mean_return", evaluation.mean)
        self.model.dump_logs()


class StopAfterEpisodes(BaseCallback):
    """Stops the training when every task has finished `episodes` episodes.

    Args:
        episodes: how many.
        columns: the number of columns of each task in the vector environment.
    """

    def __init__(self, episodes: int, columns: Sequence[int]) -> None:
        super().__init__()
        self._episodes = episodes
        self._task_of_column = [task for task, count in enumerate(columns) for _ in range(count)]
        self._finished = [0] * len(columns)

    def state_dict(self) -> dict[str, Any]:
        """The number of episodes that each task has finished."""
        return {"finished": list(self._finished)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is not one number of episodes for each task.
        """
        check_form("the finished episodes", state, {"finished": [Whole()] * len(self._finished)})
        self._finished = list(state["finished"])

    def _on_step(self) -> bool:
        for column, done in enumerate(self.locals["dones"]):
            self._finished[self._task_of_column[column]] += bool(done)
        return min(self._finished) < self._episodes

"""Meta-World's fifty tasks of a robot arm, by Meta-World's own names, and the groups MT3, MT10 and MT50.

The tasks need the extra `metaworld`. Their names are known without it, and this module does not import Meta-World.
"""

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtrl.rl.tasks import register_group

__all__ = ["MT3", "MT10", "MT50", "MetaWorldTask", "RandomGoals"]

Observation = NDArray[np.float64]  # (39,)
Action = NDArray[np.float32]  # (4,)

CAMERA = "corner2"
"""The one of Meta-World's cameras from which pictures are taken. It faces the arm across the table, head down."""


@dataclass(frozen=True)
class MetaWorldTask:
    """One of Meta-World's tasks, with its goal in the observations and a new goal in every episode.

    Rewards (0 to 10 a step), the limit of 500 steps and `info["success"]` are Meta-World's own. No return counts as
    solved: an episode is a success if it was one at any step, as in Meta-World's own evaluation.
    """

    name: str
    """Meta-World's name, such as `reach-v3`."""

    @property
    def solved_at(self) -> None:
        """No return: Meta-World reports success itself."""

    @property
    def env_id(self) -> str:
        """The Gymnasium id of Meta-World's own environments of one task, which take its name as `env_name`."""
        return "Meta-World/MT1"

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that make its environments, whose versions a run records.

        Raises:
            ValueError: the extra is not installed.
        """
        if find_spec("metaworld") is None:
            raise ValueError(f"task {self.name!r} needs Meta-World: pip install 'mtrl-balance[metaworld]'")
        return ("metaworld", "mujoco")

    def make(self, *, render_mode: str | None = None) -> gymnasium.Env[Observation, Action]:
        """Make an environment.

        Raises:
            ValueError: the extra is not installed, or pictures cannot be drawn here.
        """
        assert self.packages
        classes = import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS
        env = RandomGoals(classes[self.name](render_mode=render_mode, camera_name=CAMERA))
        if render_mode == "rgb_array":
            _check_drawing(env)
        return env


class RandomGoals(gymnasium.Wrapper[Observation, Action, Observation, Action]):
    """Draws a new goal at every reset, from the environment's own generator, which `reset(seed=...)` seeds.

    Meta-World's benchmarks fix fifty goals for each task in advance and choose among them. Their goals are drawn from
    the same distribution as those here, and with the same goal an episode here is the same as there.

    Args:
        env: an environment of Meta-World without a task, as its class makes it.
    """

    def __init__(self, env: gymnasium.Env[Observation, Action]) -> None:
        super().__init__(env)
        game: Any = env.unwrapped
        game.seeded_rand_vec = True  # otherwise goals come from NumPy's global generator
        game._set_task_called = True
        game._partially_observable = False
        del game.sawyer_observation_space  # it was computed for a hidden goal; steps clip observations to it
        self.game = game
        # Meta-World bounds an observation by its task's goals, so that the spaces of two tasks differ.
        self.observation_space = spaces.Box(-np.inf, np.inf, game.observation_space.shape, np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode with a new goal."""
        if seed is not None:
            self.game.seed(seed)
        # Meta-World's own reset begins by drawing, too, but it draws twice and lets the first goal leave its traces.
        self.game._freeze_rand_vec = False
        self.game.reset_model()
        self.game._freeze_rand_vec = True
        observation, info = self.game.reset(options=options)
        return observation, info

    def render(self) -> Any:
        """A picture as Meta-World draws it, turned by half a circle, as its camera hangs upside down."""
        picture = self.game.render()
        return np.ascontiguousarray(picture[::-1, ::-1]) if isinstance(picture, np.ndarray) else picture


def _check_drawing(env: gymnasium.Env[Observation, Action]) -> None:
    """Draw one picture. Where there is no display, MuJoCo draws by EGL, unless the user has chosen something else.

    Raises:
        ValueError: MuJoCo cannot draw.
    """
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        env.render()
    except Exception as error:  # each way of drawing has errors of its own
        way = os.environ.get("MUJOCO_GL", "a window")
        raise ValueError(f"MuJoCo can't draw by {way} ({error}); the variable MUJOCO_GL may be egl or glfw") from error


MT10 = (
    *("reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3"),
    *("button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3"),
)
"""The names of Meta-World's MT10, in Meta-World's order."""

MT3 = ("reach-v3", "drawer-close-v3", "window-close-v3")
"""The names of three tasks of MT10: a point to reach, a drawer to push shut, and a window to slide shut."""

MT50 = (
    *("assembly-v3", "basketball-v3", "bin-picking-v3", "box-close-v3", "button-press-topdown-v3"),
    *("button-press-topdown-wall-v3", "button-press-v3", "button-press-wall-v3", "coffee-button-v3", "coffee-pull-v3"),
    *("coffee-push-v3", "dial-turn-v3", "disassemble-v3", "door-close-v3", "door-lock-v3", "door-open-v3"),
    *("door-unlock-v3", "hand-insert-v3", "drawer-close-v3", "drawer-open-v3", "faucet-open-v3", "faucet-close-v3"),
    *("hammer-v3", "handle-press-side-v3", "handle-press-v3", "handle-pull-side-v3", "handle-pull-v3"),
    *("lever-pull-v3", "pick-place-wall-v3", "pick-out-of-hole-v3", "pick-place-v3", "plate-slide-v3"),
    *("plate-slide-side-v3", "plate-slide-back-v3", "plate-slide-back-side-v3", "peg-insert-side-v3"),
    *("peg-unplug-side-v3", "soccer-v3", "stick-push-v3", "stick-pull-v3", "push-v3", "push-wall-v3", "push-back-v3"),
    *("reach-v3", "reach-wall-v3", "shelf-place-v3", "sweep-into-v3", "sweep-v3", "window-open-v3", "window-close-v3"),
)
"""The names of all of Meta-World's tasks, which are its MT50, in Meta-World's order."""

for _group, _names in {"MT3": MT3, "MT10": MT10, "MT50": MT50}.items():
    register_group(_group, [MetaWorldTask(name) for name in _names])

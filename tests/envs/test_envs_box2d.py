import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from Box2D import b2EdgeShape, b2FixtureDef, b2PolygonShape, b2World

from envs import make_task_env
from envs.box2d import free_shapes


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resets_hold_memory_flat():
    env = make_task_env("Heavy")
    env.reset(seed=0)
    for _ in range(200):
        env.reset()
    before = resident_pages()
    for _ in range(2000):
        env.reset()
    assert resident_pages() - before < 150  # 600 kB; without the mend 3.2 MB


def test_landers_work_where_python_makes_errors_of_warnings():
    program = "import envs; env = envs.make_task_env('Windy'); env.reset(seed=0); env.step(2)"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_a_definition_keeps_its_shape_alive_and_python_owns_it():
    definition = b2FixtureDef(shape=b2PolygonShape(box=(1, 2)), density=1.0)  # nobody else has the shape
    world = b2World()
    body = world.CreateDynamicBody(fixtures=definition)
    assert np.allclose(sorted(body.fixtures[0].shape.vertices), [(-1, -2), (-1, 2), (1, -2), (1, 2)])
    shape = b2EdgeShape(vertices=[(0, 0), (1, 0)])
    definition.shape = shape
    assert shape.thisown
    definition.shape = None
    assert definition.shape is None


def test_a_shape_that_python_does_not_own_stays_so():
    definition = b2FixtureDef(shape=b2PolygonShape(box=(1, 2)))
    borrowed = definition.shape
    other = b2FixtureDef(shape=borrowed)
    assert not borrowed.thisown  # or it would be freed twice
    assert other.shape == definition.shape


def test_mending_twice_is_mending_once():
    mended = b2FixtureDef.shape
    free_shapes()
    assert b2FixtureDef.shape is mended

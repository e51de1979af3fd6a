"""Networks on what a features extractor of Stable-Baselines3 makes of images, dictionaries and other observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from torch import Tensor, nn

from mtrl.files import one_line
from mtrl.limits import check_parameters
from mtrl.rl.networks import SharedQNetwork
from mtrl.rl.observations import TASK, ObservationRows, whole_space

EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {
    kind.__name__: kind for kind in (FlattenExtractor, NatureCNN, CombinedExtractor)
}
"""The features extractors that a saved model may name."""

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (nn.ReLU, nn.Tanh, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.LeakyReLU, nn.Sigmoid, nn.Softplus)
}
"""The activations that a saved model may name."""


class TaskFeatures(nn.Module):
    """What a features extractor makes of observations.

    In the aware variant the task's one-hot goes past the extractor and joins the features, so that networks find it
    where they find that of a vector: at the end of their input, from where their embedding replaces it. Convolutions
    see the image alone, are the same for all tasks, and can be those of any SB3 project.

    Args:
        rows: how observations are laid out.
        extractor: takes what the space without the one-hot holds, preprocessed as in Stable-Baselines3: images divided
            by 255, integers as one-hots.
        normalize_images: whether images are divided by 255. Default True.

    Attributes:
        size: F, the number of features, the one-hot included.

    Raises:
        ValueError: the extractor normalises over a batch, which would mix the tasks.
    """

    def __init__(self, rows: ObservationRows, extractor: BaseFeaturesExtractor, normalize_images: bool = True) -> None:
        super().__init__()
        for name, module in extractor.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"layer '{name}' of {type(extractor).__name__} is {type(module).__name__}, which mixes the rows of "
                    "different tasks; use nn.GroupNorm or nn.LayerNorm"
                )
        self.features_extractor = extractor
        self.size = extractor.features_dim + rows.one_hot_size
        self._rows, self._normalize_images = rows, normalize_images
        self._space = whole_space(rows.space, rows.one_hot_size)

    def forward(self, rows: Tensor) -> Tensor:
        """Features (N, F) for rows (N, ...) of observations."""
        observations: Any = self._rows.tensors(rows)
        tasks = self._rows.one_hot_size
        if tasks and isinstance(observations, dict):
            one_hot = observations.pop(TASK)
            if not isinstance(self._space, spaces.Dict):
                (observations,) = observations.values()
        elif tasks:
            observations, one_hot = observations[:, :-tasks], observations[:, -tasks:]
        features: Tensor = self.features_extractor(preprocess_obs(observations, self._space, self._normalize_images))
        return torch.cat((features, one_hot), 1) if tasks else features


class FeaturesQNetwork(TaskFeatures):
    """Action values by a features extractor and a Q-network on its features.

    The arguments are those of `TaskFeatures`, and `head`, the network on the features.
    """

    def __init__(
        self, rows: ObservationRows, extractor: BaseFeaturesExtractor, head: nn.Module, normalize_images: bool = True
    ) -> None:
        super().__init__(rows, extractor, normalize_images)
        self.head = head

    @property
    def last_shared_layer(self) -> nn.Module | None:
        """The last hidden layer, or else the last layer of the extractor that has a matrix, or else the only layer."""
        head: Any = self.head
        layer: nn.Module | None = getattr(head, "last_shared_layer", None)
        if layer is not None and (not isinstance(head, SharedQNetwork) or head.num_hidden):
            return layer
        matrices = [m for m in self.features_extractor.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        return matrices[-1] if matrices else layer

    @property
    def shared(self) -> nn.Module:
        """The part that tasks share, whose gradients are balanced."""
        part: nn.Module = getattr(self.head, "shared", self.head)
        return self if part is self.head else nn.ModuleList([self.features_extractor, part])

    def forward(self, rows: Tensor) -> Tensor:
        """Action values (N, A) for rows (N, ...) of observations."""
        values: Tensor = self.head(super().forward(rows))
        return values


def make_extractor(
    kind: type[BaseFeaturesExtractor], space: spaces.Space[Any], kwargs: Mapping[str, Any]
) -> BaseFeaturesExtractor:
    """Make a features extractor of a space. The size of those of Stable-Baselines3 is checked before memory is taken.

    Raises:
        ValueError: the class cannot take this space or these arguments, or would have too many parameters.
    """
    if not (isinstance(kind, type) and issubclass(kind, BaseFeaturesExtractor)):
        raise ValueError(f"features_extractor_class is {kind!r}; it must be a class of BaseFeaturesExtractor")
    _check_images(kind, space, kwargs)
    try:
        if kind in EXTRACTORS.values():
            with torch.device("meta"):
                check_parameters(sum(parameter.numel() for parameter in kind(space, **kwargs).parameters()))
        return kind(space, **kwargs)
    except (TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        shape = getattr(space, "shape", None)
        raise ValueError(
            f"{kind.__name__} cannot take observations in {type(space).__name__}{shape or ''}: {one_line(error)}; give "
            "policy_kwargs=dict(features_extractor_class=...) another"
        ) from error


def _check_images(kind: type[BaseFeaturesExtractor], space: spaces.Space[Any], kwargs: Mapping[str, Any]) -> None:
    """Say what is wrong with the observations where the convolutions of Stable-Baselines3 would not take them."""
    if kind is CombinedExtractor and not isinstance(space, spaces.Dict):
        raise ValueError(f"MultiInputPolicy is for dictionaries, not for {one_line(space)}; use MlpPolicy or CnnPolicy")
    if kind is not NatureCNN or is_image_space(space, normalized_image=bool(kwargs.get("normalized_image"))):
        return
    if isinstance(space, spaces.Dict):
        raise ValueError("CnnPolicy is for images, and the observations are a dictionary; use MultiInputPolicy")
    shape = space.shape or ()
    hint = "its values must be uint8 from 0 to 255; if they are normalised, policy_kwargs=dict(normalize_images=False)"
    if len(shape) == 2:
        hint = "an image has a channel, which gymnasium.wrappers.GrayscaleObservation(env, keep_dim=True) keeps"
    elif len(shape) == 4:
        hint = "mtrl.rl.make_task_vec_env makes one image of stacked frames"
    elif len(shape) != 3:
        hint = "use MlpPolicy"
    kind_of_space = type(space).__name__
    raise ValueError(f"CnnPolicy is for images, not for {kind_of_space}{shape} of {space.dtype}: {hint}")

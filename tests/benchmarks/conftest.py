"""The small tabletop of the environments' tests."""

from tests.envs.conftest import tabletop as tabletop

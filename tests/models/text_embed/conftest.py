import pytest

from models.text_embed.build import BuildResult, build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """The model as it is shipped: texts in, FP32."""
    return build(tmp_path_factory.mktemp("built"))

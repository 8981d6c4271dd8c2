from typing import Any

version: str
cuda_version: int

def device_count() -> tuple[int, str]: ...
def spd_logdet(
    A: Any, logdet: Any, inverse: Any | None, info: Any | None, implicit_identity: bool, stream: int, /
) -> None: ...
def spd_logdet_max_size(itemsize: int, device: int, /) -> int: ...

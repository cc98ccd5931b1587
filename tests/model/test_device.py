"""What follows from a device's facts: number formats, kernels, graphs; on devices that need not be there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from baton.core.errors import SettingError
from baton.cuda import ragged_attention as ragged
from baton.loader.choose import choose
from baton.loader.device_steps import in_steady_steps
from baton.loader.proof import proof_of
from baton.model.device import Device, device_of
from baton.model.forward import TorchForward
from families import model_of

CPU, MPS = Device("cpu"), Device("mps")
T4, A100, H200 = (Device("cuda", capability) for capability in ((7, 5), (8, 0), (9, 0)))
AMD = Device("cuda", hip=True)


@pytest.mark.parametrize(
    ("device", "saved", "dtype"),
    [
        (CPU, "float32", "float32"),
        (CPU, "bfloat16", "bfloat16"),
        (MPS, "float16", "float16"),
        (MPS, "float32", "float32"),
        (H200, "float32", "bfloat16"),
        (H200, "bfloat16", "bfloat16"),
        (H200, "float16", "float16"),
        (A100, "float32", "bfloat16"),
        (AMD, "float32", "bfloat16"),
        (T4, "float32", "float16"),
        (T4, "bfloat16", "float16"),
        (T4, "float16", "float16"),
    ],
)
def test_where_no_number_format_is_asked_for_gpus_compute_in_16_bits(device: Device, saved: str, dtype: str) -> None:
    assert device.dtype("auto", saved) == dtype


@pytest.mark.parametrize("device", [CPU, MPS, T4, A100, H200, AMD])
def test_a_number_format_that_is_asked_for_holds_or_is_refused(device: Device) -> None:
    assert [device.dtype(asked, "bfloat16") for asked in ("float32", "float16")] == ["float32", "float16"]
    if device is T4:
        with pytest.raises(SettingError, match=r"--dtype bfloat16: .* capability 7.5 .* take float16 or float32"):
            device.dtype("bfloat16", "float32")
    else:
        assert device.dtype("bfloat16", "float32") == "bfloat16"


def test_why_kernels_in_triton_are_not_tried() -> None:
    assert [device.why_no_triton(installed=True) for device in (A100, H200, AMD)] == ["", "", ""]
    assert "pip install" in H200.why_no_triton(installed=False)
    assert "7.5" in T4.why_no_triton(installed=True)
    assert "mps" in MPS.why_no_triton(installed=True)


def test_which_devices_capture_and_group_experts() -> None:
    assert [device.captures for device in (CPU, MPS, T4, H200, AMD)] == [False, False, True, True, True]
    assert [device.groups(torch.bfloat16) for device in (CPU, T4, A100, H200, AMD)] == [True, False, False, True, False]
    assert not H200.groups(torch.float32) and not H200.groups(torch.float16)


def test_which_devices_multiply_float8() -> None:
    l4 = Device("cuda", (8, 9))
    assert [device.float8 for device in (CPU, MPS, T4, A100, l4, H200, AMD)] == [False] * 4 + [True, True, False]


def test_facts_are_read_off_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of(torch.device("cpu")) == CPU
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert device_of(torch.device("cuda")) == H200
    monkeypatch.setattr(torch, "version", SimpleNamespace(hip="6.4"))
    assert device_of(torch.device("cuda")) == AMD


def test_a_gpu_without_triton_attends_in_torch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    proof, plain = proof_of(model), choose(model, native=False).forward
    assert isinstance(plain, TorchForward)
    monkeypatch.setattr(ragged, "device_of", lambda device: T4)
    forward, reasons = in_steady_steps(proof, plain)
    assert forward.parts()[-1] == "decode steps of constant shape, masked attention in torch"
    assert [str(reason) for reason in reasons] == [
        "not attention in Triton: Triton's kernels need compute capability 8.0, this GPU's is 7.5"
    ]

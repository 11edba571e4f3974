"""Models of images, sound and sets, in the manners of timm, torchvision, StyleGAN, DiT and others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planning.strangers.common import NEVER, LitNorm, Net, Stranger, free


class LayerScale(Net):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.gamma = free(d)

    def forward(self, x: Tensor) -> Any:
        return x * self.gamma


class VisionTransformer(Net):
    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, d, 8, stride=8)
        self.cls_token, self.reg_token, self.pos_embed = free(1, 1, d), free(1, 4, d), free(1, 16, d)
        self.norm, self.qkv, self.ls = nn.LayerNorm(d), nn.Linear(d, 3 * d), LayerScale(d)
        self.q_norm, self.head = LitNorm(d), nn.Linear(d, 10)

    def forward(self, image: Tensor) -> Any:
        x = self.patch_embed(image).flatten(2).transpose(1, 2) + self.pos_embed
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.reg_token.expand(len(x), -1, -1), x], 1)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head((x + self.ls(F.scaled_dot_product_attention(self.q_norm(q), k, v)))[:, 0])


class ResponseNorm(Net):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.one, self.two = free(1, 1, 1, d), free(1, 1, 1, d)

    def forward(self, x: Tensor) -> Any:
        size = x.norm(dim=(1, 2), keepdim=True)
        return self.one * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.two + x


class ConvNext(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.stem, self.dwconv = nn.Conv2d(3, d, 4, stride=4), nn.Conv2d(d, d, 7, padding=3, groups=d)
        self.norm, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.grn, self.scale = ResponseNorm(4 * d), free(d)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.down(self.grn(F.gelu(self.up(self.norm(self.dwconv(x).permute(0, 2, 3, 1))))))
        return x + (self.scale * y).permute(0, 3, 1, 2)


class FrozenStatsNorm(Net):
    """Normalises by stored statistics, as detection backbones do; channel first."""

    mean: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.g, self.s = free(1, d, 1, 1), free(1, d, 1, 1)
        self.register_buffer("mean", torch.zeros(1, d, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return (x - self.mean) * self.g + self.s


class ResNet(Net):
    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, d, 7, stride=2, bias=False), nn.BatchNorm2d(d)
        self.conv2, self.act, self.own = nn.Conv2d(d, d, 3, padding=1), nn.PReLU(d), FrozenStatsNorm(d)
        self.squeeze, self.excite, self.fc = nn.Conv2d(d, 2, 1), nn.Conv2d(2, d, 1), nn.Linear(d, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.bn1(self.conv1(x))
        x = x + self.own(self.act(self.conv2(x)))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True))).sigmoid()
        return self.fc(x.mean((2, 3)))


class WindowAttention(Net):
    index: Tensor

    def __init__(self, d: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d), heads
        self.logit_scale, self.q_shift, self.table = free(heads, 1, 1), free(d), free(17, heads)
        self.register_buffer("index", torch.arange(9)[:, None] - torch.arange(9)[None] + 8)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q + self.q_shift, k, v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2) * self.logit_scale.exp()
        scores = scores + self.table[self.index].permute(2, 0, 1)[None]
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Quantiser(Net):
    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.entries, self.into, self.mask = free(32, d), nn.Linear(16, d), free(d)

    def forward(self, x: Tensor) -> Any:
        z = self.into(x)
        z = torch.where(x[..., :1] > 1.0, self.mask, z)
        return z + self.entries[torch.cdist(z, self.entries).argmin(-1)]


class Perceiver(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.latents, self.kv, self.query, self.norm = free(6, d), nn.Linear(d, 2 * d), nn.Linear(d, d), LitNorm(d)

    def forward(self, x: Tensor) -> Any:
        k, v = self.kv(self.norm(x)).chunk(2, -1)
        q = self.query(self.norm(self.latents)).expand(len(x), -1, -1)
        return F.scaled_dot_product_attention(q, k, v)


class Vocoder(Net):
    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(d, d, 3, padding=1))
        self.alpha, self.amount = free(1, d, 1), free(1, d, 1)
        self.log_std = free(d)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        y = y + self.amount * (self.alpha.exp() * y).sin() ** 2
        return y * self.log_std.exp()[:, None]


class ObjectQueries(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.memory, self.asked, self.point = nn.Linear(d, d), nn.Embedding(7, d), nn.Embedding(1, d)
        self.attend = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Any:
        targets = torch.zeros(len(x), 7, x.shape[-1]) + self.asked.weight + self.point.weight
        return (self.attend(targets) @ self.memory(x).mT).softmax(-1)


class InstanceGain(Net):
    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.conv, self.kernel = nn.Conv2d(3, d, 3, padding=1), free(d, d, 3, 3)
        self.level, self.lift = free(d, 1, 1), free(d, 1, 1)

    def forward(self, x: Tensor) -> Any:
        x = F.conv2d(self.conv(x), self.kernel, padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-5)
        return self.level * x + self.lift


class ModulatedKernel(Net):
    """StyleGAN: the kernel is scaled by the input before the convolution; noise and a learned constant are added."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.start, self.mod, self.kern = nn.Conv2d(3, d, 3, padding=1), nn.Linear(d, d), free(1, d, d, 3, 3)
        self.noise, self.gamma = free(d), free(1, d, 1, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.start(x)
        kernel = self.kern * self.mod(y.mean((2, 3)))[:, None, :, None, None]
        kernel = kernel * torch.rsqrt(kernel.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
        flat = F.conv2d(y.flatten(0, 1)[None], kernel.flatten(0, 1), padding=1, groups=len(x))
        return self.gamma * flat.view_as(y) + self.noise[:, None, None]


class Diffusion(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.scale_shift_table, self.pos = free(3, d), free(1, 9, d)
        self.time, self.lin = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Any:
        x = x + self.pos
        table = self.scale_shift_table[None] + self.time(x.mean(1)).unflatten(-1, (3, -1))
        shift, scale, gate = table.chunk(3, 1)
        return x + gate * self.lin(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)


STRANGE_SIGNALS: dict[str, Stranger] = {
    "VisionTransformer": Stranger(VisionTransformer, NEVER + r"|gamma", r"token"),
    "ConvNext": Stranger(ConvNext, NEVER + r"|grn|scale"),
    "ResNet": Stranger(ResNet, NEVER + r"|bn1|act|own"),
    "WindowAttention": Stranger(WindowAttention, r"bias|logit_scale|q_shift", r"table"),
    "Quantiser": Stranger(Quantiser, r"bias", r"mask"),
    "Perceiver": Stranger(Perceiver, NEVER, r"latents"),
    "Vocoder": Stranger(Vocoder, r"bias|original0|alpha|amount|log_std"),
    "ObjectQueries": Stranger(ObjectQueries, r"bias", r"asked|point"),
    "InstanceGain": Stranger(InstanceGain, r"bias|level|lift"),
    "ModulatedKernel": Stranger(ModulatedKernel, r"bias|gamma|noise"),
    "Diffusion": Stranger(Diffusion, r"bias|scale_shift"),
}

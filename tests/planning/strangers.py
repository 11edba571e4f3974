"""Modules of kinds that transformers has not, or has otherwise, each with the tensors that must not decay.

Written in the manners of timm, torchvision, litgpt, mamba, RWKV, nGPT and others, or odd on purpose. Everything that
`exempt` does not match must decay; what `disputed` matches may do either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Stranger:
    build: Callable[[], nn.Module]
    exempt: str
    disputed: str = r"(?!)"


def free(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.1)


class Net(nn.Module):
    """Makes the classes below short: forwards are written for people who read, and typed loosely."""

    forward: Callable[..., Any]


class LitNorm(Net):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = free(d)

    def forward(self, x: Tensor) -> Any:
        return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class LitGPT(Net):
    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.lm_head = nn.Linear(d, 60, bias=False)
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(60, d), "ln_f": LitNorm(d)})
        self.attn = nn.Linear(d, 3 * d)
        self.norm_1, self.mlp = LitNorm(d), nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d))

    def forward(self, idx: Tensor) -> Any:
        x = self.transformer["wte"](idx)
        q, k, v = self.attn(self.norm_1(x)).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.lm_head(self.transformer["ln_f"](x + self.mlp(x)))


class Mamba(Net):
    def __init__(self, d: int = 16, n: int = 8) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(d, 2 * d, bias=False), nn.Linear(d, d, bias=False)
        self.conv1d = nn.Conv1d(d, d, 4, groups=d, padding=3)
        self.x_proj, self.dt_proj = nn.Linear(d, 2 * n + 4, bias=False), nn.Linear(4, d)
        self.A_log, self.D = free(d, n), free(d)
        self.n = n

    def forward(self, x: Tensor) -> Any:
        u, z = self.in_proj(x).chunk(2, -1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        dt, b, c = self.x_proj(u).split([4, self.n, self.n], -1)
        dt = F.softplus(self.dt_proj(dt))
        a = torch.exp(dt.unsqueeze(-1) * -torch.exp(self.A_log))
        state, ys = torch.zeros(x.shape[0], x.shape[2], self.n), []
        for t in range(x.shape[1]):
            state = a[:, t] * state + (dt[:, t] * u[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(1)
            ys.append((state * c[:, t].unsqueeze(1)).sum(-1))
        return self.out_proj((torch.stack(ys, 1) + u * self.D) * F.silu(z))


class Decay4D(Net):
    """A state-space gate whose log time constants have four axes."""

    def __init__(self, h: int = 4, d: int = 8) -> None:
        super().__init__()
        self.first, self.second = free(1, 1, h, d), free(h, d)
        self.inner = nn.Linear(h * d, h * d)
        self.h, self.d = h, d

    def forward(self, x: Tensor) -> Any:
        gate = F.softplus(self.inner(x).unflatten(-1, (self.h, self.d)) + self.second)
        return (-self.first.exp() * gate).exp().flatten(-2)


class Rwkv(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.time_maa_k, self.time_maa_r = free(1, 1, d), free(1, 1, d)
        self.time_decay, self.time_faaaa = free(d), free(4, d // 4)
        self.key, self.receptance, self.value = (nn.Linear(d, d, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        shifted = F.pad(x, (0, 0, 1, -1))
        k = self.key(x * self.time_maa_k + shifted * (1 - self.time_maa_k))
        r = self.receptance(x + (shifted - x) * self.time_maa_r).sigmoid()
        w = torch.exp(-torch.exp(self.time_decay))
        heads = k.unflatten(-1, (4, -1)) * self.time_faaaa
        return r * self.value(heads.flatten(-2) + w * k)


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


class StackedExperts(Net):
    def __init__(self, d: int = 16, experts: int = 4) -> None:
        super().__init__()
        self.choose = free(experts, d)
        self.first, self.first_shift = free(experts, d, 2 * d), free(experts, 2 * d)
        self.second, self.second_shift = free(experts, 2 * d, d), free(experts, 1, d)

    def forward(self, x: Tensor) -> Any:
        shares = F.linear(x, self.choose).softmax(-1)
        flat = x.reshape(1, -1, x.shape[-1]).expand(len(self.first), -1, -1)
        hidden = torch.bmm(flat, self.first) + self.first_shift[:, None]
        out = torch.bmm(F.gelu(hidden), self.second) + self.second_shift
        return torch.einsum("ent,ne->nt", out, shares.flatten(0, 1)).view_as(x)


class ChosenExperts(Net):
    def __init__(self, d: int = 16, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(d, experts, bias=False)
        self.balance = free(experts)
        self.w, self.b = free(experts, d, d), free(experts, d)

    def forward(self, x: Tensor) -> Any:
        x = x.flatten(0, 1)
        chosen = (self.gate(x).sigmoid() + self.balance).topk(1, -1).indices[:, 0]
        return torch.einsum("nd,nde->ne", x, self.w[chosen]) + self.b[chosen]


class HeadGains(Net):
    def __init__(self, heads: int = 4, size: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.heads = nn.Linear(32, heads * size), nn.Linear(32, heads * size), heads
        self.q_gain, self.k_gain, self.sink, self.tau = free(heads, size), free(heads, size), free(heads), free()

    def forward(self, x: Tensor) -> Any:
        q, k = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k))
        q, k = F.normalize(q, dim=-1) * self.q_gain, F.normalize(k, dim=-1) * self.k_gain
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.tau
        sink = self.sink.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


class Normalised(Net):
    """nGPT: weights on the sphere, learned step sizes."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.matrix, self.other, self.step, self.speed = free(d, d), free(d, d), free(d), free(1)

    def forward(self, x: Tensor) -> Any:
        moved = F.normalize(x @ F.normalize(self.matrix, dim=0), dim=-1)
        x = F.normalize(x + self.step * (moved - x), dim=-1)
        return self.speed * (x @ F.normalize(self.other, dim=0))


class HomemadeCell(Net):
    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.across, self.along, self.shift = free(4 * d, d), free(4 * d, d), free(4 * d)
        self.peep = free(3, d)
        self.d = d

    def forward(self, x: Tensor) -> Any:
        hidden = cell = torch.zeros(x.shape[0], self.d)
        for t in range(x.shape[1]):
            gates = x[:, t] @ self.across.T + hidden @ self.along.T + self.shift
            i, f, g, o = gates.chunk(4, -1)
            cell = (f + self.peep[0] * cell).sigmoid() * cell + (i + self.peep[1] * cell).sigmoid() * g.tanh()
            hidden = (o + self.peep[2] * cell).sigmoid() * cell.tanh()
        return hidden


class Recurrent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.cell = nn.Embedding(40, 12), nn.GRU(12, 12, batch_first=True), nn.LSTMCell(12, 12)

    def forward(self, ids: Tensor) -> Any:
        return self.cell(self.rnn(self.embed(ids))[0][:, -1])[0]


class Torchs(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(d, 2, 24, batch_first=True)
        self.attention = nn.MultiheadAttention(d, 2, kdim=8, vdim=8, add_bias_kv=True, batch_first=True)
        self.bilinear, self.group, self.instance = (
            nn.Bilinear(d, d, 4),
            nn.GroupNorm(2, d),
            nn.InstanceNorm1d(d, affine=True),
        )
        self.rms, self.up = nn.RMSNorm(d), nn.ConvTranspose1d(d, d, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.encoder(x)
        return self.bilinear(self.rms(x), self.instance(self.group(self.up(x.mT)))[..., : x.shape[1]].mT)


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


class HandmadeWeightNorm(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.direction, self.size, self.offset = free(d, d), free(d, 1), free(d)

    def forward(self, x: Tensor) -> Any:
        weight = self.size * self.direction / self.direction.norm(dim=1, keepdim=True)
        return F.linear(x, weight, self.offset)


class ConformerAttention(Net):
    def __init__(self, heads: int = 4, size: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.heads = nn.Linear(16, 16), nn.Linear(16, 16), heads
        self.u, self.v = free(heads, size), free(heads, size)
        self.far = nn.Embedding(17, size)

    def forward(self, x: Tensor) -> Any:
        q, k = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k))
        content = torch.einsum("bqhd,bkhd->bhqk", q + self.u, k)
        offsets = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])[None] + 8
        return (content + torch.einsum("bqhd,qkd->bhqk", q + self.v, self.far(offsets))).softmax(-1)


class LowRank(Net):
    def __init__(self, d: int = 16, rank: int = 4) -> None:
        super().__init__()
        self.u, self.v, self.lora_A, self.lora_B = free(d, rank), free(rank, d), free(rank, d), free(d, rank)
        self.b0, self.share = free(d), free()

    def forward(self, x: Tensor) -> Any:
        return x @ self.u @ self.v + self.share.sigmoid() * (x @ self.lora_A.T @ self.lora_B.T) + self.b0


class Residuals(Net):
    """ReZero and skip weights: scalars by many names, some in one vector."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d, d) for _ in range(3)])
        self.kappa, self.skips = free(3), free(2, 1)
        self.tables = nn.ParameterList([free(d), free(1, d)])

    def forward(self, x: Tensor) -> Any:
        start = x
        for index, layer in enumerate(self.layers):
            x = self.skips[0] * x + self.kappa[index] * layer(x) + self.skips[1] * start
        return (x + self.tables[0]) * torch.sigmoid(self.tables[1])


class Retention(Net):
    def __init__(self, heads: int = 4, d: int = 16) -> None:
        super().__init__()
        self.qkv, self.speed, self.heads, self.norm = nn.Linear(d, 3 * d), free(heads), heads, LitNorm(d)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        steps = torch.arange(x.shape[1])
        distance = (steps[:, None] - steps[None]).clamp(min=0)
        fade = torch.exp(F.logsigmoid(self.speed)[:, None, None] * distance)
        return ((q @ k.mT) * fade @ v).transpose(1, 2).flatten(2)


class Positions(Net):
    """Positions in four ways: looked up, sliced, factorised, and per channel of an image."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.tok, self.looked_up, self.sliced = nn.Embedding(50, d), nn.Embedding(32, d), free(32, d)
        self.rows, self.norm = free(1, 32, d), LitNorm(d)

    def forward(self, tokens: Tensor) -> Any:
        length = tokens.shape[1]
        x = self.tok(tokens) * math.sqrt(16) + self.looked_up(torch.arange(length))
        return self.norm(x + self.sliced[:length] + self.rows[:, :length])


class ObjectQueries(Net):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.memory, self.asked, self.point = nn.Linear(d, d), nn.Embedding(7, d), nn.Embedding(1, d)
        self.attend = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Any:
        targets = torch.zeros(len(x), 7, x.shape[-1]) + self.asked.weight + self.point.weight
        return (self.attend(targets) @ self.memory(x).mT).softmax(-1)


class Frequencies(Net):
    """Random Fourier features and a mixture of linear recurrences, under names that say nothing."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.p1, self.p2, self.p3, self.p4 = free(d, 8), free(16, d), free(d), free(1, 1, d)

    def forward(self, x: Tensor) -> Any:
        angles = x @ self.p1
        y = torch.cat([angles.sin(), angles.cos()], -1) @ self.p2
        return F.layer_norm(y, y.shape[-1:], self.p3, None) + self.p4


class InstanceGain(Net):
    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.conv, self.kernel = nn.Conv2d(3, d, 3, padding=1), free(d, d, 3, 3)
        self.level, self.lift = free(d, 1, 1), free(d, 1, 1)

    def forward(self, x: Tensor) -> Any:
        x = F.conv2d(self.conv(x), self.kernel, padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-5)
        return self.level * x + self.lift


_NEVER = r"(^|\.)bias|norm|ln_f\."
STRANGERS: dict[str, Stranger] = {
    "LitGPT": Stranger(LitGPT, _NEVER),
    "Mamba": Stranger(Mamba, r"bias|A_log|D$"),
    "Decay4D": Stranger(Decay4D, r"bias|first|second"),
    "Rwkv": Stranger(Rwkv, r"time_"),
    "VisionTransformer": Stranger(VisionTransformer, _NEVER + r"|gamma", r"token"),
    "ConvNext": Stranger(ConvNext, _NEVER + r"|grn|scale"),
    "ResNet": Stranger(ResNet, _NEVER + r"|bn1|act|own"),
    "WindowAttention": Stranger(WindowAttention, r"bias|logit_scale|q_shift", r"table"),
    "StackedExperts": Stranger(StackedExperts, r"shift"),
    "ChosenExperts": Stranger(ChosenExperts, r"balance|^b$"),
    "HeadGains": Stranger(HeadGains, r"bias|gain|sink|tau"),
    "Normalised": Stranger(Normalised, r"step|speed"),
    "HomemadeCell": Stranger(HomemadeCell, r"shift|peep"),
    "Recurrent": Stranger(Recurrent, r"bias"),
    "Torchs": Stranger(Torchs, r"bias|norm|group|instance|rms"),
    "Quantiser": Stranger(Quantiser, r"bias", r"mask"),
    "Perceiver": Stranger(Perceiver, _NEVER, r"latents"),
    "Vocoder": Stranger(Vocoder, r"bias|original0|alpha|amount|log_std"),
    "HandmadeWeightNorm": Stranger(HandmadeWeightNorm, r"size|offset"),
    "ConformerAttention": Stranger(ConformerAttention, r"bias|^u$|^v$", r"far"),
    "LowRank": Stranger(LowRank, r"b0|share"),
    "Residuals": Stranger(Residuals, r"bias|kappa|skips|tables"),
    "Retention": Stranger(Retention, _NEVER + r"|speed"),
    "Positions": Stranger(Positions, _NEVER),
    "ObjectQueries": Stranger(ObjectQueries, r"bias", r"asked|point"),
    "Frequencies": Stranger(Frequencies, r"p3|p4"),
    "InstanceGain": Stranger(InstanceGain, r"bias|level|lift"),
}

"""Sequence models in the manners of litgpt, mamba, RWKV, nGPT, S4, RetNet and others, or odd on purpose."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planning.strangers.common import NEVER, LitNorm, Net, Stranger, free


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
    """`A_log` and `D` under names that say nothing."""

    def __init__(self, d: int = 16, n: int = 8) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(d, 2 * d, bias=False), nn.Linear(d, d, bias=False)
        self.conv1d = nn.Conv1d(d, d, 4, groups=d, padding=3)
        self.x_proj, self.dt_proj = nn.Linear(d, 2 * n + 4, bias=False), nn.Linear(4, d)
        self.rates, self.past = free(d, n), free(d)
        self.n = n

    def forward(self, x: Tensor) -> Any:
        u, z = self.in_proj(x).chunk(2, -1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        dt, b, c = self.x_proj(u).split([4, self.n, self.n], -1)
        dt = F.softplus(self.dt_proj(dt))
        a = torch.exp(dt.unsqueeze(-1) * -torch.exp(self.rates))
        state, ys = torch.zeros(x.shape[0], x.shape[2], self.n), []
        for t in range(x.shape[1]):
            state = a[:, t] * state + (dt[:, t] * u[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(1)
            ys.append((state * c[:, t].unsqueeze(1)).sum(-1))
        return self.out_proj((torch.stack(ys, 1) + u * self.past) * F.silu(z))


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


class Frequencies(Net):
    """Random Fourier features and a mixture of linear recurrences, under names that say nothing."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.p1, self.p2, self.p3, self.p4 = free(d, 8), free(16, d), free(d), free(1, 1, d)

    def forward(self, x: Tensor) -> Any:
        angles = x @ self.p1
        y = torch.cat([angles.sin(), angles.cos()], -1) @ self.p2
        return F.layer_norm(y, y.shape[-1:], self.p3, None) + self.p4


class HyperConnections(Net):
    def __init__(self, d: int = 16, n: int = 4) -> None:
        super().__init__()
        self.static_alpha, self.static_beta, self.fn, self.vector = free(n, n + 1), free(n), free(d, n + 1), free(d)
        self.alpha_scale, self.beta_scale, self.norm, self.layer = free(1), free(1), nn.LayerNorm(d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Any:
        streams = x.unsqueeze(2).repeat(1, 1, len(self.static_beta), 1)
        alpha = (self.norm(streams) @ self.fn).tanh() * self.alpha_scale + self.static_alpha
        beta = (self.norm(streams) @ self.vector).tanh() * self.beta_scale + self.static_beta
        mixed = alpha.mT @ streams
        return torch.einsum("btd,btn->btnd", self.layer(mixed[:, :, 0]), beta) + mixed[:, :, 1:]


class DiagonalStateSpace(Net):
    """S4D: a convolution whose kernel is made of time constants."""

    def __init__(self, d: int = 8, n: int = 4) -> None:
        super().__init__()
        self.log_dt, self.log_real, self.imaginary, self.readout = free(d), free(d, n), free(d, n), free(d, n, 2)
        self.skip, self.out = free(d), nn.Linear(d, d)

    def forward(self, u: Tensor) -> Any:
        length, dt = u.shape[1], self.log_dt.exp()
        poles = torch.complex(-self.log_real.exp(), self.imaginary) * dt[:, None]
        powers = torch.exp(poles.unsqueeze(-1) * torch.arange(length))
        kernel = torch.einsum("hn,hnl->hl", torch.view_as_complex(self.readout), powers).real
        u = u.transpose(1, 2)
        spectrum = torch.fft.rfft(u, 2 * length) * torch.fft.rfft(kernel, 2 * length)
        y = torch.fft.irfft(spectrum, 2 * length)[..., :length]
        return self.out((y + u * self.skip[:, None]).transpose(1, 2))


class HyperNetwork(Net):
    """The input scales and shifts the weights of another layer, all of them or by rows, before they are used."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.maker, self.first, self.second = nn.Linear(d, d * d), nn.Linear(d, d), free(d, d)
        self.rows, self.gain = nn.Linear(d, d), free(d)

    def forward(self, x: Tensor) -> Any:
        made = self.maker(x.mean((0, 1))).view_as(self.second)
        x = F.linear(x, self.first.weight * made.sigmoid(), self.first.bias)
        x = x @ ((self.second + made) * self.rows(x.mean((0, 1)))[:, None])
        return x * self.gain


class MergedLowRank(Net):
    """Adapters that are multiplied with each other before the input is."""

    def __init__(self, d: int = 16, rank: int = 4) -> None:
        super().__init__()
        self.base, self.up, self.down, self.strength = free(d, d), free(d, rank), free(rank, d), free(d, 1)

    def forward(self, x: Tensor) -> Any:
        weight = self.base + self.up @ self.down
        return F.linear(x, self.strength * weight / weight.norm(dim=1, keepdim=True))


class MatrixMixer(Net):
    def __init__(self, d: int = 16, n: int = 9) -> None:
        super().__init__()
        self.w, self.b, self.one, self.two = free(n, n), free(n, 1), free(1, 1, d), free(1, 1, d)
        self.slopes, self.channel = free(4, 1, 1), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Any:
        y = torch.einsum("nm,bmd->bnd", self.w, self.one * x + self.two) + self.b
        heads = self.channel(y).unflatten(-1, (4, -1)).transpose(1, 2)
        steps = torch.arange(x.shape[1])
        return (heads @ heads.mT + self.slopes * (steps[None] - steps[:, None])).softmax(-1)


STRANGE_SEQUENCES: dict[str, Stranger] = {
    "LitGPT": Stranger(LitGPT, NEVER),
    "Mamba": Stranger(Mamba, r"bias|rates|past"),
    "Decay4D": Stranger(Decay4D, r"bias|first|second"),
    "Rwkv": Stranger(Rwkv, r"time_"),
    "StackedExperts": Stranger(StackedExperts, r"shift"),
    "ChosenExperts": Stranger(ChosenExperts, r"balance|^b$"),
    "HeadGains": Stranger(HeadGains, r"bias|gain|sink|tau"),
    "Normalised": Stranger(Normalised, r"step|speed"),
    "HomemadeCell": Stranger(HomemadeCell, r"shift|peep"),
    "Recurrent": Stranger(Recurrent, r"bias"),
    "Torchs": Stranger(Torchs, r"bias|norm|group|instance|rms"),
    "HandmadeWeightNorm": Stranger(HandmadeWeightNorm, r"size|offset"),
    "ConformerAttention": Stranger(ConformerAttention, r"bias|^u$|^v$", r"far"),
    "LowRank": Stranger(LowRank, r"b0|share"),
    "Residuals": Stranger(Residuals, r"bias|kappa|skips|tables"),
    "Retention": Stranger(Retention, NEVER + r"|speed"),
    "Positions": Stranger(Positions, NEVER),
    "Frequencies": Stranger(Frequencies, r"p3|p4"),
    "HyperConnections": Stranger(HyperConnections, r"bias|static|scale|norm"),
    "DiagonalStateSpace": Stranger(DiagonalStateSpace, r"bias|log_|imaginary|skip", r"readout"),
    "HyperNetwork": Stranger(HyperNetwork, r"bias|gain"),
    "MergedLowRank": Stranger(MergedLowRank, r"strength"),
    "MatrixMixer": Stranger(MatrixMixer, r"bias|^b$|one|two|slopes"),
}

# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which of my parameters decay, and does it matter?
#
# `weight_decay=0.1` looks like one number. What it does depends on which tensors it reaches, and how. This notebook
# takes a small model with parts that are common today, asks which of its tensors decay under several rules of thumb,
# looks at what an optimizer's step really does, and then trains it both ways.
#
# It needs `pip install weightdecay` and runs in about a minute on one core.

# %%
import statistics
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import weightdecay

torch.set_num_threads(1)  # as fast as two for a model this small
WIDTH, CONTEXT = 32, 48

# %% [markdown]
# ## The model
#
# A byte-level language model of two kinds of blocks: attention with a gain for each head's queries and keys, and a
# state-space block with time constants. Each block's output has a learned scale.


# %%
class Attention(nn.Module):
    def __init__(self, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.query_gain = nn.Parameter(torch.ones(heads, 1, WIDTH // heads))

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q = F.rms_norm(q, (q.shape[-1],)) * self.query_gain
        k = F.rms_norm(k, (k.shape[-1],))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))


class StateSpace(nn.Module):
    """h ← exp(−Δ·exp(A_log))·h + Δ·B·x, y = C·h + D·x, written out as a causal convolution."""

    def __init__(self, states: int = 8):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, states + 1).float()).repeat(WIDTH, 1))
        self.B = nn.Parameter(torch.randn(WIDTH, states) / states)
        self.C = nn.Parameter(torch.randn(WIDTH, states) / states)
        self.D = nn.Parameter(torch.ones(WIDTH))
        self.dt = nn.Parameter(torch.full((WIDTH,), -2.0))

    def forward(self, x):
        u, length = self.inner(x), x.shape[1]
        step = F.softplus(self.dt)[:, None]
        time = torch.arange(length, dtype=x.dtype)
        decay = torch.exp(-(step * self.A_log.exp())[..., None] * time)
        kernel = ((self.B * self.C * step)[..., None] * decay).sum(1)
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * length, 1) * torch.fft.rfft(kernel.T, 2 * length, 0), dim=1)
        return y[:, :length] + self.D * u


class Block(nn.Module):
    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(WIDTH), mixer
        self.ff_norm, self.up, self.down = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.full((2, WIDTH), 0.5))

    def forward(self, x):
        x = x + self.scale[0] * self.mixer(self.norm(x))
        return x + self.scale[1] * self.down(F.gelu(self.up(self.ff_norm(x))))


class Hybrid(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.blocks = nn.ModuleList([Block(StateSpace()), Block(Attention()), Block(StateSpace())])
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


torch.manual_seed(0)
model = Hybrid()
tokens = torch.randint(0, 256, (2, CONTEXT))

# %% [markdown]
# ## Which of them should decay?
#
# One traced forward says what each tensor does: what multiplies as a matrix decays; gains, biases, scales and time
# constants do not, whatever their shape.

# %%
plan = weightdecay.plan(model, weight_decay=0.1, batch=tokens)
print(plan)

# %% [markdown]
# ## What the usual rules make of it
#
# `ndim >= 2` (nanoGPT and many others) decays the per-head gains, the layer scales and the time constants, because they
# are stored with two axes or more. The names that transformers' Trainer goes by miss some of them as well.

# %%
for rule in ("nanogpt", "transformers", "torch"):
    print(plan.diff(plan.under(rule)), "\n")

# %% [markdown]
# ## What a step really does
#
# The audit steps the real optimizer on the real tensors, puts everything back, and says what decays otherwise than
# asked, with the code that mends it.

# %%
usual = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1)
print(weightdecay.audit(model, usual))

# %%
mended = torch.optim.AdamW(plan.param_groups(lr=1e-3), betas=(0.9, 0.95))
print(weightdecay.audit(model, mended, plan=plan))

# %% [markdown]
# ## Does it matter?
#
# The same model is trained on Python sources, three seeds each, under the plan and with everything decaying, at the
# usual λ and at a large one. η·λ·T, the decay of the whole run, decides how much can be seen: at λ = 0.1 it is less
# than 0.1 here, and little moves. Runs of billions of tokens come to 10 and more, which the large λ stands for.

# %%
text = b"".join(file.read_bytes() for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
training, held_out = data[: -len(data) // 10], data[-len(data) // 10 :]


def batch(source: torch.Tensor, generator: torch.Generator, size: int = 12):
    starts = torch.randint(0, len(source) - CONTEXT - 1, (size,), generator=generator)
    rows = torch.stack([source[start : start + CONTEXT + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


def loss_of(model, source, generator, size=12):
    inputs, targets = batch(source, generator, size)
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def train(policy: str, weight_decay: float, seed: int, steps: int = 200, lr: float = 3e-3):
    torch.manual_seed(seed)
    model = Hybrid()
    plan = weightdecay.plan(model, weight_decay=weight_decay, policy=policy, batch=tokens)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=lr), betas=(0.9, 0.95))
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 30) * min(1.0, (steps - step) / 100)
        loss = loss_of(model, training, order)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        bits = loss_of(model, held_out, torch.Generator().manual_seed(1), 256).item() / 0.6931
    gains = torch.cat(
        [p.detach().abs().flatten() for name, p in model.named_parameters() if "norm" in name or "gain" in name]
    )
    constants = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "A_log" in name])
    return bits, gains.mean().item(), constants.mean().item()


# %%
print(f"{'decays':<12}{'λ':>6}{'held-out bits per byte':>26}{'mean gain':>12}{'mean A_log':>12}")
results = {}
for weight_decay in (0.1, 3.0):
    for policy in ("default", "torch"):
        runs = results[policy, weight_decay] = [train(policy, weight_decay, seed) for seed in range(3)]
        bits, gains, constants = zip(*runs, strict=True)
        name = "by the plan" if policy == "default" else "everything"
        print(
            f"{name:<12}{weight_decay:>6}{statistics.mean(bits):>16.3f} ± {statistics.stdev(bits):.3f}"
            f"{statistics.mean(gains):>16.3f}{statistics.mean(constants):>12.3f}"
        )

# %% [markdown]
# At the usual λ the two differ by less than what the seed does, since in a short run decay is too small to matter,
# which is worth knowing before one tunes it; in pairs of equal seeds the difference shows all the same. At the large λ
# gains and time constants are pulled towards zero where everything decays, and the model pays for it; the plan keeps
# them where training puts them.

# %%
for weight_decay in (0.1, 3.0):
    pairs = zip(results["torch", weight_decay], results["default", weight_decay], strict=True)
    differences = [everything[0] - planned[0] for everything, planned in pairs]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    print(f"λ = {weight_decay}: everything − plan = {mean:+.4f} ± {error:.4f} bits per byte, {len(differences)} seeds")

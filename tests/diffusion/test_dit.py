"""The diffusion transformer: its start, its sizes, one block in float64, and places that matter."""

import pytest
import torch
from torch import Tensor, nn

from latentfaces.config.compose import compose_config
from latentfaces.diffusion import DiT
from latentfaces.diffusion.dit import DiTBlock, SwiGLU
from latentfaces.nn import position_table_2d, rotation_2d


def tiny_dit(
    patch_size: int = 2,
    depth: int = 2,
    random: bool = True,
    auxiliary_depth: int = 0,
    label_channels: int = 0,
    position_table: bool = False,
) -> DiT:
    """Return a DiT of a few thousand weights, random ones also where it starts from zero."""
    torch.manual_seed(0)
    dit = DiT(
        3,
        width=16,
        depth=depth,
        num_heads=2,
        patch_size=patch_size,
        auxiliary_depth=auxiliary_depth,
        label_channels=label_channels,
        position_table=position_table,
    )
    if random:
        randomise(dit)
    return dit.eval()


def randomise(module: nn.Module) -> None:
    """Give every parameter a value that matters."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def swap_tokens(x: Tensor, patch_size: int) -> Tensor:
    """Exchange the first two patches of the first row."""
    swapped = x.clone()
    swapped[..., :patch_size, :patch_size] = x[..., :patch_size, patch_size : 2 * patch_size]
    swapped[..., :patch_size, patch_size : 2 * patch_size] = x[..., :patch_size, :patch_size]
    return swapped


def test_first_prediction_is_exactly_zero() -> None:
    x_t = torch.randn(2, 3, 8, 8)
    assert torch.equal(tiny_dit(random=False)(x_t, torch.rand(2)), torch.zeros_like(x_t))


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (4, 10)])
def test_prediction_has_the_shape_of_the_latents(patch_size: int, size: tuple[int, int]) -> None:
    x_t = torch.randn(2, 3, *size)
    prediction = tiny_dit(patch_size)(x_t, torch.rand(2))
    assert prediction.shape == x_t.shape
    assert prediction.std() > 0


def test_block_equals_a_naive_computation_in_float64() -> None:
    torch.manual_seed(0)
    width, heads, height, columns = 16, 2, 2, 3
    head_width, n = width // heads, height * columns
    block = DiTBlock(width, heads, qk_norm=True, dropout=0.0)
    randomise(block)
    tokens, embedding = torch.randn(2, n, width), torch.randn(2, width)
    rotation = rotation_2d(height, columns, head_width)
    w = {name: value.double() for name, value in block.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def rms(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(x: Tensor) -> Tensor:
        first, second = x[..., : head_width // 2], x[..., head_width // 2 :]
        cos, sin = rotation.double()[..., : head_width // 2]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def attended(x: Tensor) -> Tensor:
        query, key, value = linear(x, "attention.qkv").split(width, dim=-1)
        heads_out = []
        for head in range(heads):
            part = slice(head * head_width, (head + 1) * head_width)
            q = turned(rms(query[..., part]) * w["attention.query_norm.weight"])
            k = turned(rms(key[..., part]) * w["attention.key_norm.weight"])
            weights = torch.exp(q @ k.mT / head_width**0.5)
            heads_out.append(weights / weights.sum(-1, keepdim=True) @ value[..., part])
        return linear(torch.cat(heads_out, dim=-1), "attention.out")

    def fed_forward(x: Tensor) -> Tensor:
        gate, value = linear(x, "feed_forward.gate"), linear(x, "feed_forward.value")
        return linear(gate / (1 + torch.exp(-gate)) * value, "feed_forward.out")

    shift1, scale1, gate1, shift2, scale2, gate2 = linear(embedding.double(), "modulation")[:, None].split(width, -1)
    expected = tokens.double()
    expected = expected + gate1 * attended(rms(expected) * (1 + scale1) + shift1)
    expected = expected + gate2 * fed_forward(rms(expected) * (1 + scale2) + shift2)

    assert torch.allclose(block(tokens, embedding, rotation).double(), expected, rtol=1e-4, atol=1e-4)


def test_new_block_is_the_identity() -> None:
    tokens = torch.randn(2, 4, 16)
    block = DiTBlock(16, 2, qk_norm=True, dropout=0.0)
    assert torch.equal(block(tokens, torch.randn(2, 16), rotation_2d(2, 2, 8)), tokens)


def test_places_matter_because_of_the_rotation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x_t, t = torch.randn(1, 3, 4, 4), torch.tensor([0.5])
    dit = tiny_dit()
    for name, parameter in dit.named_parameters():
        if "query_norm" in name:
            parameter.data.fill_(10.0)  # sharp attention, or the softmax is nearly even and hides where tokens are
    assert not torch.allclose(dit(swap_tokens(x_t, 2), t), swap_tokens(dit(x_t, t), 2), atol=1e-2)

    def no_turn(height: int, width: int, channels: int, device: torch.device) -> Tensor:
        return torch.stack([torch.ones(height * width, channels), torch.zeros(height * width, channels)])

    monkeypatch.setattr("latentfaces.diffusion.dit.rotation_2d", no_turn)
    assert torch.allclose(dit(swap_tokens(x_t, 2), t), swap_tokens(dit(x_t, t), 2), atol=1e-4)


@pytest.mark.parametrize("size", [(4, 4), (2, 6), (10, 4)])
def test_position_table_distinguishes_tokens_of_equal_content(size: tuple[int, int]) -> None:
    x_t, t = torch.ones(1, 3, *size), torch.tensor([1.0])

    def patches(position_table: bool) -> Tensor:
        dit = tiny_dit(position_table=position_table)
        return nn.functional.pixel_unshuffle(dit(x_t, t), 2).flatten(2)[0].T

    without, table = patches(False), patches(True)
    assert torch.allclose(without, without[:1].expand_as(without), atol=1e-4)
    distances = torch.cdist(table, table) + torch.eye(len(table))
    assert distances.min() > 1e-2


def test_blocks_see_the_places_of_a_wide_grid_and_the_time_through_silu() -> None:
    dit = tiny_dit(position_table=True)
    nn.init.zeros_(dit.embed_patch.weight)
    nn.init.zeros_(dit.embed_patch.bias)
    last = dit.embed_time.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -40.0)  # silu(-40) is 0
    seen: list[tuple[Tensor, ...]] = []
    dit.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs))
    dit(torch.randn(1, 3, 4, 10), torch.rand(1))  # patches: 2 rows, 5 columns
    ((tokens, embedding, rotation),) = seen
    assert torch.equal(tokens[0], position_table_2d(2, 5, 16))
    assert torch.equal(rotation, rotation_2d(2, 5, 8))
    assert embedding.abs().max() < 1e-10


def test_head_does_not_see_how_long_tokens_are() -> None:
    head = tiny_dit().head
    tokens, embedding = torch.randn(2, 6, 16), torch.randn(2, 16)
    assert torch.allclose(head(3 * tokens, embedding), head(tokens, embedding), atol=1e-5)


def test_dropout_of_everything_leaves_the_tokens_as_they_are() -> None:
    torch.manual_seed(0)
    block = DiTBlock(16, 2, qk_norm=True, dropout=1.0)
    randomise(block)
    inputs = torch.randn(2, 6, 16), torch.randn(2, 16), rotation_2d(2, 3, 8)
    assert torch.equal(block.train()(*inputs), inputs[0])
    assert not torch.allclose(block.eval()(*inputs), inputs[0])


def test_feed_forward_has_the_parameters_of_an_ungated_layer_of_four_times_the_width() -> None:
    num_weights = sum(p.numel() for p in SwiGLU(384).parameters() if p.ndim == 2)
    assert num_weights == 2 * 4 * 384**2


def test_position_table_adds_no_weights_and_older_configs_have_none() -> None:
    table, older = tiny_dit(position_table=True), DiT(3, width=16, depth=2, num_heads=2)
    assert table.state_dict().keys() == older.state_dict().keys()
    older.load_state_dict(tiny_dit().state_dict())
    x_t, t = torch.randn(2, 3, 4, 4), torch.rand(2)
    assert torch.equal(older.eval()(x_t, t), tiny_dit()(x_t, t))


@pytest.mark.parametrize("name", ["tiny", "dit_s", "dit_b", "dit_l"])
def test_dit_presets_have_the_position_table(name: str) -> None:
    cfg = compose_config("train", ["model=ldm", f"model/denoiser={name}"])
    assert cfg.model.denoiser.network.position_table


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_largest_preset_lowers_the_learning_rate(optimizer: str) -> None:
    cfg = compose_config("train", ["model=ldm", "model/denoiser=dit_l", f"model/optimizer={optimizer}"])
    assert (cfg.model.optimizer.lr, cfg.model.denoiser.target) == (2e-4, "v")


@pytest.mark.parametrize(("width", "num_heads"), [(16, 3), (18, 1), (20, 2)])
def test_a_head_whose_channels_cannot_be_rotated_is_rejected_before_training(width: int, num_heads: int) -> None:
    with pytest.raises(ValueError, match=rf"width={width} is not a multiple .* num_heads={num_heads}"):
        DiT(3, width=width, num_heads=num_heads)


def test_patch_goes_back_to_where_it_came_from() -> None:
    # Where blocks are the identity no token hears of another: what changes in one patch may change nothing elsewhere.
    dit = tiny_dit(depth=1)
    nn.init.zeros_(dit.blocks[0].modulation.weight)
    nn.init.zeros_(dit.blocks[0].modulation.bias)
    x_t, t = torch.randn(1, 3, 4, 6), torch.tensor([0.5])
    changed = x_t.clone()
    changed[0, :, 2:4, 4:6] += 1
    moved = (dit(changed, t) - dit(x_t, t)).abs().amax((0, 1)) > 1e-6
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(moved, expected)


def test_every_token_hears_of_every_other() -> None:
    dit = tiny_dit(depth=1)
    x_t, t = torch.randn(1, 3, 4, 4), torch.tensor([0.5])
    changed = x_t.clone()
    changed[0, :, 0, 0] += 1
    assert ((dit(changed, t) - dit(x_t, t)).abs().amax((0, 1)) > 1e-6).all()


def test_time_of_each_sample_changes_that_sample_alone() -> None:
    dit, x_t = tiny_dit(), torch.randn(2, 3, 4, 4)
    before, after = dit(x_t, torch.tensor([0.2, 0.2])), dit(x_t, torch.tensor([0.2, 0.9]))
    assert torch.allclose(before[0], after[0], atol=1e-5)
    assert not torch.allclose(before[1], after[1], atol=1e-2)


def test_gradients_reach_every_parameter() -> None:
    dit = tiny_dit()
    dit(torch.randn(2, 3, 4, 4), torch.rand(2)).square().mean().backward()
    assert [name for name, p in dit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_first_of_the_heads_is_the_prediction() -> None:
    dit, x_t, t = tiny_dit(depth=3, auxiliary_depth=2), torch.randn(2, 3, 4, 4), torch.rand(2)
    first, second = dit.heads(x_t, t)
    assert torch.equal(first, dit(x_t, t))
    assert second.shape == first.shape
    assert not torch.allclose(first, second, atol=1e-2)


def test_transformer_without_an_auxiliary_head_has_one_head() -> None:
    dit, x_t, t = tiny_dit(), torch.randn(2, 3, 4, 4), torch.rand(2)
    (head,) = dit.heads(x_t, t)
    assert torch.equal(head, dit(x_t, t))
    assert not any("auxiliary" in name for name in dit.state_dict())


@pytest.mark.parametrize("auxiliary_depth", [1, 2, 3])
def test_auxiliary_head_hears_of_the_blocks_before_it_alone(auxiliary_depth: int) -> None:
    x_t, t = torch.randn(2, 3, 4, 4), torch.rand(2)
    for number in range(4):
        dit = tiny_dit(depth=4, auxiliary_depth=auxiliary_depth)
        first, second = dit.heads(x_t, t)
        randomise(dit.blocks[number])
        first_after, second_after = dit.heads(x_t, t)
        assert not torch.allclose(first, first_after, atol=1e-3)
        assert torch.equal(second, second_after) == (number >= auxiliary_depth)


def test_auxiliary_head_is_a_head_of_a_shorter_transformer() -> None:
    dit, short = tiny_dit(depth=4, auxiliary_depth=2), tiny_dit(depth=2)
    weights = {name: value for name, value in dit.state_dict().items() if not name.startswith("head.")}
    renamed = {name.replace("auxiliary_head.", "head."): value for name, value in weights.items()}
    short.load_state_dict({name: value for name, value in renamed.items() if name in short.state_dict()})
    x_t, t = torch.randn(2, 3, 4, 4), torch.rand(2)
    assert torch.allclose(dit.heads(x_t, t)[1], short(x_t, t), atol=1e-6)


def test_gradient_of_the_auxiliary_head_reaches_what_is_before_it() -> None:
    dit = tiny_dit(depth=3, auxiliary_depth=2, label_channels=2)
    dit.heads(torch.randn(2, 3, 4, 4), torch.rand(2), torch.rand(2, 2))[1].square().mean().backward()
    without = {name for name, p in dit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    after = {name for name, _ in dit.named_parameters() if name.startswith(("blocks.2.", "head."))}
    assert without == after


def test_auxiliary_head_starts_from_zero_too() -> None:
    dit, x_t = tiny_dit(random=False, auxiliary_depth=1), torch.randn(2, 3, 4, 4)
    assert [head.abs().max().item() for head in dit.heads(x_t, torch.rand(2))] == [0.0, 0.0]


@pytest.mark.parametrize("auxiliary_depth", [-1, 2, 3])
def test_auxiliary_head_that_is_not_within_the_transformer_is_refused(auxiliary_depth: int) -> None:
    with pytest.raises(ValueError, match=f"auxiliary_depth={auxiliary_depth} .* depth=2"):
        tiny_dit(auxiliary_depth=auxiliary_depth)


def test_label_of_zero_is_no_label() -> None:
    dit, x_t, t = tiny_dit(label_channels=3), torch.randn(2, 3, 4, 4), torch.rand(2)
    assert torch.equal(dit(x_t, t, torch.zeros(2, 3)), dit(x_t, t))


def test_label_of_each_sample_changes_that_sample_alone() -> None:
    dit, x_t, t = tiny_dit(label_channels=3, auxiliary_depth=1), torch.randn(2, 3, 4, 4), torch.rand(2)
    label = torch.tensor([[0.0, 0.0, 0.0], [0.5, -0.5, 1.0]])
    for before, after in zip(dit.heads(x_t, t), dit.heads(x_t, t, label), strict=True):
        assert torch.allclose(before[0], after[0], atol=1e-5)
        assert not torch.allclose(before[1], after[1], atol=1e-2)


def test_label_that_the_network_does_not_know_is_refused() -> None:
    with pytest.raises(AssertionError, match="label_channels"):
        tiny_dit()(torch.randn(2, 3, 4, 4), torch.rand(2), torch.zeros(2, 3))


@pytest.mark.parametrize("size", [(5, 4), (4, 7)])
def test_size_that_does_not_divide_into_patches_raises(size: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match="divisible by downscale_factor"):
        tiny_dit()(torch.zeros(1, 3, *size), torch.zeros(1))

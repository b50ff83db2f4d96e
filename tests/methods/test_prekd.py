"""PREKD: what its VAE learns from and when, its loss, and the one step that readies z for replay."""

import pytest
import torch
from tiny import run_all, tiny_setup

from nayer_lib.config import make_config
from nayer_lib.methods.base import NonFiniteLoss
from nayer_lib.methods.prekd import PREKD


def tiny_prekd(**overrides) -> PREKD:
    return tiny_setup(method="prekd", **overrides).method


def test_its_numbers():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="prekd", protocol="published", profile="full")
    assert config.vae_lr == config.generator_lr / 40 == 5e-4
    assert (config.vae_share, config.alpha_kld, config.latent_lr) == (0.4, 1e-5, 0.02)
    rates = {group["lr"] for group in tiny_prekd().vae_optimizer.param_groups}
    assert rates == {5e-4}


# --- when the VAE learns


@pytest.mark.parametrize(("steps", "learning"), [(10, 4), (5, 2), (2, 1), (1, 1)])
def test_the_vae_learns_beside_the_first_of_a_turns_steps(steps, learning):
    counts = {"repeats": 2, "student_steps": steps, "generator_steps": 1, "generator_batch": 4, "epochs": 2}
    setup, told = tiny_setup(method="prekd", **counts), []
    student_step, vae_step = setup.method.student_step, setup.method.vae_step
    setup.method.student_step = lambda batch: (told.append("S"), student_step(batch))[1]
    setup.method.vae_step = lambda batch: (told.append("V"), vae_step(batch))[1]
    run_all(setup)
    assert "".join(told) == 4 * (learning * "SV" + (steps - learning) * "S")


def test_it_learns_from_the_first_half_of_the_batchs_new_images_and_as_many_own_as_are_replayed():
    method = tiny_prekd()
    of_generator, of_decoder, learned = [], [], []
    batch = method.sample(27)
    method.generator.register_forward_hook(lambda _module, _inputs, images: of_generator.append(images.detach()))
    method.vae.decoder.register_forward_hook(lambda _module, _inputs, images: of_decoder.append(images.detach()))
    method.vae.register_forward_pre_hook(lambda _module, inputs: learned.append(inputs[0]))
    method.vae_step(batch)
    assert not of_generator and [len(images) for images in of_decoder] == [3, 3, 15]  # z before its step and after it
    assert batch.replayed == 3 and torch.equal(learned[0], torch.cat([batch.images[:12], of_decoder[1]]))


def test_the_decoder_also_follows_the_loss_that_z_takes_its_step_on():
    """Its gradient is the sum of both, by hand."""
    method, again = tiny_prekd(), tiny_prekd()
    batch = method.sample(27)
    again.rng.set_state(method.rng.get_state())
    method.vae_step(batch)

    c, decoder = again.config, again.vae.decoder
    z = again._draw(3).requires_grad_()
    t = again.teacher(decoder(z))
    mean = t.softmax(1).mean(0)
    loss = c.alpha_ie * (mean * mean.log()).sum() - c.alpha_cls * t.softmax(1).max(1).values.log().mean()
    loss = loss + (z.var(0) - 1).pow(2).mean() + z.mean(0).pow(2).mean()
    loss.backward()
    alone = [p.grad.clone() for p in decoder.parameters()]
    torch.optim.Adam([z], c.latent_lr).step()
    with torch.no_grad():
        images = torch.cat([batch.images[:12], decoder(z)])
    again._vae_loss(images, again._draw(15)).backward()
    for mine, expected in zip(method.vae.parameters(), again.vae.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-3, atol=1e-5)
    assert max(gradient.abs().max() for gradient in alone) > 0.01


# --- its loss


def test_its_loss_is_in_images_logits_and_the_posterior():
    method = tiny_prekd(alpha_kld=0.3)
    images, noise = torch.rand(12, 1, 8, 8), torch.randn(12, 16)
    again, mean, log_var = method.vae(images, noise)
    with torch.no_grad():
        wanted, found = method.teacher(images), method.teacher(again)
    kld = (-0.5 * (1 + log_var - mean**2 - log_var.exp())).sum() / 12
    expected = (images - again).abs().mean() + (wanted - found).abs().mean() + 0.3 * kld
    assert method._vae_loss(images, noise).item() == pytest.approx(expected.item(), rel=1e-4)


def test_its_loss_falls():
    method = tiny_prekd(vae_lr=5e-3, alpha_ie=0.0, alpha_cls=0.0)  # the decoder follows no other loss
    told = torch.stack([method.vae_step(method.sample(64)) for _ in range(60)])
    assert told[-10:].mean() < 0.75 * told[:5].mean()


def test_its_loss_is_told_with_the_next_round_and_a_nan_is_no_diverged_student():
    method = tiny_prekd(repeats=2)
    assert "L_V" not in method.synthesize(0).extra  # it has not learned yet
    vae_step, losses = method.vae_step, []
    method.vae_step = lambda batch: losses.append(vae_step(batch)) or losses[-1]
    for _ in range(3):
        method.student_step(method.sample(16))
    state = method.state_dict()
    told = method.synthesize(0).extra["L_V"]
    assert len(losses) > 1 and told == pytest.approx(torch.stack(losses).mean().item())
    assert "L_V" not in method.synthesize(0).extra
    again = tiny_prekd(repeats=2)
    again.load_state_dict(state)
    assert again.synthesize(0).extra["L_V"] == told
    method.vae_step = lambda batch: torch.tensor(float("nan"))
    for _ in range(2):  # to the end of this turn, and the first of the next, beside which the VAE learns
        method.student_step(method.sample(16))
    with pytest.raises(NonFiniteLoss, match="L_V became NaN or infinite before round .* lower vae_lr"):
        method.synthesize(0)


def test_the_vae_learns_alone():
    method = tiny_prekd()
    others = [p for net in (method.generator, method.student) for p in net.parameters()]
    before = [p.clone() for p in others]
    encoder, decoder = (next(net.parameters()).clone() for net in (method.vae.encoder, method.vae.decoder))
    method.vae_step(method.sample(27))
    assert all(map(torch.equal, before, others)) and all(p.grad is None for p in others)
    assert not torch.equal(encoder, next(method.vae.encoder.parameters()))
    assert not torch.equal(decoder, next(method.vae.decoder.parameters()))


# --- replay


def test_a_batch_ends_in_what_the_decoder_makes():
    method, made = tiny_prekd(), []
    method.augment = lambda images: images
    method.vae.decoder.register_forward_hook(lambda _module, _inputs, images: made.append(images.detach()))
    batch = method.sample(27)
    assert batch.replayed == 3 and torch.equal(batch.images[24:], made[-1]) and len(made) == 2


def test_what_is_replayed_comes_from_the_decoder_in_eval_mode_and_is_not_cropped_again():
    method, modes, made = tiny_prekd(), [], []
    method.vae.decoder.register_forward_hook(
        lambda module, _inputs, images: (modes.append(module.training), made.append(images.detach()))[0] and None
    )
    batch = method.sample(27)
    assert modes == [False, False] and torch.equal(batch.images[24:], made[-1]) and method.vae.decoder.training
    method.vae_step(batch)
    assert modes[2:] == [True] * 3


def test_z_takes_one_adam_step_on_confidence_balance_and_spread():
    """Adam's first step is the rate times the gradient's sign."""
    method, entered = tiny_prekd(latent_lr=0.1), []
    method.vae.decoder.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0].detach().clone()))
    method.replay(6)
    start, end = entered
    z = start.clone().requires_grad_()
    t = method.teacher(method.vae.decoder.eval()(z))
    p, c = t.softmax(1), method.config
    mean = p.mean(0)
    loss = c.alpha_ie * (mean * mean.log()).sum() - c.alpha_cls * p.max(1).values.log().mean()
    loss = loss + (z.var(0) - 1).pow(2).mean() + z.mean(0).pow(2).mean()
    (gradient,) = torch.autograd.grad(loss, z)
    clear = gradient.abs() > 1e-5
    assert clear.float().mean() > 0.9
    torch.testing.assert_close((end - start)[clear], -0.1 * gradient.sign()[clear], rtol=0.01, atol=1e-4)


def test_replaying_leaves_the_vae_without_a_gradient():
    method = tiny_prekd()
    method.replay(6)
    assert all(p.grad is None for p in method.vae.parameters()) and not method.replay(6).requires_grad
    assert method.replay(0).shape == (0, 1, 8, 8)

"""Configuration: defaults, files, overrides, and the sentences that refuse what is wrong."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from mapstack import config as configuration
from mapstack.codecs import Encoding
from mapstack.config import Config, load_config, make_method_from
from mapstack.errors import ConfigError
from mapstack.job_configs import EvaluateConfig, FiguresConfig, FitConfig, ShardsConfig, WeightsConfig
from mapstack.methods import CaptumMethod, Gradient, GradientShap, IntegratedGradients, Occlusion, Saliency
from serve.config import ServeConfig

CONFIGS = Path(__file__).parents[1] / "configs"
SCHEMAS: dict[str, type] = {
    "demo": Config,
    "medclip": Config,
    "paper": Config,
    "figures": FiguresConfig,
    "phantom_shards": ShardsConfig,
    **{f"{name}_shards": ShardsConfig for name in ("mimic_cxr", "ms_cxr", "chexlocalize", "nih", "vindr", "rsna")},
    "folder_shards": ShardsConfig,
    "random_weights": WeightsConfig,
    "medclip_vit_weights": WeightsConfig,
    "medclip_resnet50_weights": WeightsConfig,
    "phantom_fit": FitConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load_text(text: str, *overrides: str, schema: type = Config) -> Any:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(schema, path, overrides)

    return load_text


@pytest.mark.parametrize("schema", [Config, FiguresConfig, ShardsConfig, WeightsConfig, FitConfig, EvaluateConfig])
def test_an_empty_file_gives_the_defaults(load: Any, schema: type) -> None:
    assert load("", schema=schema) == schema()


def test_the_defaults_are_the_contract() -> None:
    config = Config()
    assert (config.model.name, config.model.checkpoint) == ("medclip-vit", "model_store/phantom-medclip")
    assert config.method == IntegratedGradients(n_steps=20, baseline="black")
    assert (config.stack.basis, config.stack.normalize, config.stack.map_size) == ("axes", True, 224)
    assert (config.stack.codec, config.stack.compress, config.stack.max_error) == ("lowrank", "none", 0.01)
    assert (config.route, config.output, config.overwrite, config.seed) == ("auto", "out/store", False, 0)
    data = config.data
    assert (data.batch_size, data.num_workers, data.limit, data.allowed_schemes) == (4, 2, None, ["file"])
    assert (data.max_bad_share, data.duplicates, data.timeout_s) == (0.01, "fail", 120)
    trainer = config.trainer
    assert (trainer.accelerator, trainer.devices, trainer.num_nodes, trainer.precision) == (
        "auto",
        "auto",
        1,
        "32-true",
    )


def test_every_shipped_configuration_loads() -> None:
    shipped = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    assert shipped.keys() <= SCHEMAS.keys(), "a new configuration needs a line in SCHEMAS"
    for name, path in shipped.items():
        assert isinstance(load_config(SCHEMAS[name], path), SCHEMAS[name])


def test_the_shipped_configurations_read_what_the_converter_writes() -> None:
    written = load_config(SCHEMAS["mimic_cxr_shards"], CONFIGS / "mimic_cxr_shards.yaml")
    for name in ("medclip", "paper"):
        assert load_config(Config, CONFIGS / f"{name}.yaml").data.shards == f"{written.output}/{written.name}-*.tar"


def test_the_paper_is_taken_to_the_letter() -> None:
    config = load_config(Config, CONFIGS / "paper.yaml")
    assert config.stack.normalize is False
    assert config.stack.basis == "axes"
    assert isinstance(config.method, Saliency)


def test_overrides_win_and_the_last_wins_most(load: Any) -> None:
    text = "data: {batch_size: 8, limit: 5}\nseed: 3\n"
    config = load(text, "data.batch_size=16", "data.batch_size=32", "stack.map_size=null")
    assert (config.data.batch_size, config.data.limit, config.seed) == (32, 5, 3)
    assert config.stack.map_size is None
    assert config.data.num_workers == 2


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.shards=a b.tar", "a b.tar"),
        ("data.shards=[x.tar, y.tar]", ["x.tar", "y.tar"]),
        ('data.shards="shards/{0..3}.tar"', "shards/{0..3}.tar"),
        ("data.shards=s3://chest/0.tar", "s3://chest/0.tar"),
    ],
)
def test_shards_are_written_as_webdataset_users_write_them(load: Any, override: str, value: object) -> None:
    assert load("", override).data.shards == value


def test_the_form_of_the_store_is_one_encoding(load: Any) -> None:
    config = load("stack: {codec: lowrank, max_error: 0.1, compress: zstd}")
    assert config.stack.encoding == Encoding("lowrank", 0.1, "zstd")
    assert Config().stack.encoding == Encoding()


def test_prompts_with_commas_are_kept_whole(load: Any) -> None:
    assert load("", 'prompts.texts=["effusion, left", heart]').prompts.texts == ["effusion, left", "heart"]


METHODS: dict[str, tuple[str, object]] = {
    "gradient": ("{name: gradient, rows_per_pass: 4}", Gradient(rows_per_pass=4)),
    "saliency": ("{name: saliency}", Saliency()),
    "occlusion": (
        "{name: occlusion, sliding_window_shapes: 32, strides: 8, baseline: mean, perturbations_per_eval: 2}",
        Occlusion(sliding_window_shapes=32, strides=8, baseline="mean", perturbations_per_eval=2),
    ),
    "integrated_gradients": ("{name: integrated_gradients, n_steps: 50}", IntegratedGradients(n_steps=50)),
    "integrated_gradients auto": (
        "{name: integrated_gradients, n_steps: auto, tolerance: 0.05, max_steps: 64}",
        IntegratedGradients(n_steps="auto", tolerance=0.05, max_steps=64),
    ),
    "gradient_shap": (
        "{name: gradient_shap, n_samples: 7, stdevs: 0, baselines: [black, white]}",
        GradientShap(n_samples=7, stdevs=0.0, baselines=("black", "white")),
    ),
    "captum": (
        "{name: captum, attribution: captum.attr.NoiseTunnel, kwargs: {nt_type: vargrad, nested: {deep: [1, 2]}}, "
        "init: {flag: true}, linear: true}",
        CaptumMethod(
            attribution="captum.attr.NoiseTunnel",
            kwargs={"nt_type": "vargrad", "nested": {"deep": [1, 2]}},
            init={"flag": True},
            linear=True,
        ),
    ),
}


@pytest.mark.parametrize(("block", "method"), METHODS.values(), ids=METHODS)
def test_method_blocks(load: Any, block: str, method: object) -> None:
    found = load(f"method: {block}").method
    assert found == method
    assert type(found) is type(method)
    if isinstance(found, CaptumMethod):  # plain containers: Captum and JSON take no others
        assert type(found.kwargs["nested"]["deep"]) is list


def test_nested_method_keys_are_set_one_by_one(load: Any) -> None:
    method = load(
        "method: {name: captum, attribution: captum.attr.Occlusion, kwargs: {strides: [1, 8, 8]}}",
        "method.kwargs.sliding_window_shapes=[1,16,16]",
        "method.kwargs.strides=[1,4,4]",
    ).method
    assert method.kwargs == {"strides": [1, 4, 4], "sliding_window_shapes": [1, 16, 16]}


def test_another_method_does_not_inherit_the_parameters_of_the_files(load: Any) -> None:
    text = "method: {name: integrated_gradients, n_steps: 50, baseline: white}"
    assert load(text, "method.name=occlusion").method == Occlusion()
    assert load(text, "method={name: gradient_shap, n_samples: 3}").method == GradientShap(n_samples=3)
    assert load(text, "method.n_steps=7").method == IntegratedGradients(n_steps=7, baseline="white")
    assert load(text, "method.name=integrated_gradients").method == IntegratedGradients(n_steps=50, baseline="white")


def test_figures_hold_several_methods(load: Any) -> None:
    text = "figure_1: [{name: saliency}, {name: occlusion, strides: 8}]\nfigure_2: {name: gradient}"
    config = load(text, schema=FiguresConfig)
    assert config.figure_1 == [Saliency(), Occlusion(strides=8)]
    assert config.figure_2 == Gradient()
    with pytest.raises(ConfigError, match=r"method 'occlusion' is no block of keys"):
        load("figure_1: [occlusion]", schema=FiguresConfig)


def test_groups_come_from_texts_or_a_file(load: Any) -> None:
    assert load("").prompts.groups() == ()
    groups = load("prompts: {texts: [heart, nodule], ensemble: none}").prompts.groups()
    assert [group.name for group in groups] == ["heart", "nodule"]
    labels = load(f"prompts: {{file: {CONFIGS}/prompts/phantom.yaml, use: labels}}").prompts.groups()
    assert "Consolidation" in [group.name for group in labels]


WRONG = {
    "stack.map_sise=3": r"^configuration key 'stack.map_sise' is unknown; choose one of .*'stack.map_size'\?$",
    "stack.map_size=big": r"^configuration key 'stack.map_size' is wrong: Value 'big' .*; correct its type\.$",
    "stack.codec=lowrnak": r"^stack.codec 'lowrnak' is unknown; choose one of .*Did you mean 'lowrank'\?$",
    "stack.compress=gzip": r"^stack.compress 'gzip' is unknown; choose one of none, zstd\.$",
    "stack.max_error=1": r"^stack.max_error is 1.0; it is a share, in \[0, 1\); correct it\.$",
    "stack.max_error=-0.1": r"^stack.max_error is -0.1; it is a share",
    "method.n_steps=1.5": r"^configuration key 'method.n_steps' is wrong: .*; correct its type\.$",
    "method.n_steps=0": r"^method.n_steps is 0; it must be a positive number or auto; correct it\.$",
    "method.tolerance=-1": r"^method.tolerance is -1.0; it must be at least 0; correct it\.$",
    "method.internal_batch_size=0": r"^method.internal_batch_size is 0; it must be at least 1; correct it\.$",
    "method.baseline=grey": r"^method.baseline 'grey' is unknown; choose one of black, white, mean, noise, blur\.",
    "method={name: gradient_shap, baselines: [black, grey]}": r"^method.baselines 'grey' is unknown",
    "method={name: captum, attribution: captum.attr.Nothing}": r"'captum.attr.Nothing' cannot be imported",
    "method.name=null": r"^method 'None' is unknown",
    "prompts.texts=heart": r"^configuration key 'prompts.texts' is wrong",
    "prompts.ensemble=median": r"^prompts.ensemble 'median' is unknown; choose one of none, mean, max\.",
    "data={batch.size: 1}": r"^configuration key 'data.batch.size' is unknown; .* Did you mean 'data.batch_size'\?$",
    "data.shards={a: 1}": r"^data.shards is a dict; it is a path",
    "data.duplicates=last": r"^data.duplicates 'last' is unknown; choose one of fail, first\.$",
    "model=medclip-vit": r"^configuration key 'model' is 'medclip-vit'; it is a block of keys; .* model.NAME=value\.$",
    "trainer.num_nodes=0": r"^trainer.num_nodes is 0; it must be at least 1; correct it\.$",
    "project.span_tolerance=-0.1": r"^project.span_tolerance is -0.1; it must be at least 0; correct it\.$",
    "seed=${nothing}": r"^configuration key 'seed' is wrong: Interpolation key 'nothing' not found",
}


@pytest.mark.parametrize(("override", "pattern"), WRONG.items(), ids=WRONG)
def test_wrong_values_are_refused_by_name(load: Any, override: str, pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern) as refusal:
        load("", override)
    assert "\n" not in str(refusal.value)


def test_a_method_is_a_block() -> None:
    assert make_method_from({"name": "gradient"}) == Gradient()
    with pytest.raises(ConfigError, match=r"^method 3 is no block of keys"):
        make_method_from(3)


def test_every_key_is_documented() -> None:
    blocks = [each for each in vars(configuration).values() if isinstance(each, type) and is_dataclass(each)]
    for block in blocks:
        documented = block.__doc__ or ""
        if "Attributes:" in documented:
            for each in fields(block):
                assert f"\n        {each.name}:" in documented, f"{block.__name__}.{each.name}"

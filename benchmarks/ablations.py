"""What the five papers vary, each setting as a small run on the digits: names, keys, and what each is compared with.

``benchmarks/training_options.py --option=NAME`` trains and judges one; the table of docs/training_options.md is
``markdown()``.
"""

from typing import NamedTuple


class Ablation(NamedTuple):
    """One setting.

    Attributes:
        paper: where it is varied.
        setting: in words.
        recipe: after the colon of ``--config=digits:``.
        changes: keys of the config -> values.
        defense: ``evaluate --defense=``, for what is switched on after training.
        against: the setting with which it is compared.
    """

    paper: str
    setting: str
    recipe: str
    changes: dict
    defense: str | None = None
    against: str | None = "adversarial"

    def command(self) -> str:
        """What to give to ``python -m robustjax.train`` and, after a semicolon, to ``python -m robustjax.evaluate``."""
        flags = [f"--config=digits:{self.recipe}", *(f"--config.{key}={value}" for key, value in self.changes.items())]
        evaluated = f"; --defense={self.defense}" if self.defense else ""
        return " ".join(flags) + evaluated


def _of(paper: str, recipe: str, against: str | None, **settings: tuple[str, dict]) -> dict[str, Ablation]:
    return {
        name: Ablation(
            paper, setting, recipe, {f"defense.{key}": value for key, value in changes.items()}, None, against
        )
        for name, (setting, changes) in settings.items()
    }


def _sap(against: str | None, recipe: str = "standard", **settings: tuple[str, str]) -> dict[str, Ablation]:
    paper = "SAP, and its appendix's baselines"
    return {name: Ablation(paper, text, recipe, {}, defense, against) for name, (text, defense) in settings.items()}


ABLATIONS: dict[str, Ablation] = {
    "adversarial": Ablation("", "adversarial training alone", "at", {}, None, None),
    "natural": Ablation("", "natural training alone", "standard", {}, None, None),
    **_of("CAS", "at_cas", "adversarial", cas=("as published: the last stage's two sites, beta 2", {})),
    **_of(
        "CAS, position",
        "at_cas",
        "cas",
        cas_stage1=("stage 1", {"sites": "stage1"}),
        cas_stage2=("stage 2", {"sites": "stage2"}),
        cas_stage3=("stage 3", {"sites": "stage3"}),
        cas_final=("the last feature map alone", {"sites": "final"}),
        cas_every_stage=("all stages", {"sites": "stage1,stage2,stage3"}),
    ),
    **_of(
        "CAS, beta",
        "at_cas",
        "cas",
        cas_beta_01=("beta 0.1", {"beta": 0.1}),
        cas_beta_1=("beta 1", {"beta": 1.0}),
        cas_beta_10=("beta 10", {"beta": 10.0}),
        cas_attack_0=("trained against attacks on the network's own logits", {"attack_beta": 0.0}),
    ),
    **_of("CIFS", "at_cifs", "adversarial", cifs=("as published: top-2, softmax, beta 2", {})),
    **_of(
        "CIFS, layers",
        "at_cifs",
        "cifs",
        cifs_final=("the last feature map alone", {"sites": "final"}),
        cifs_stages=("stage 2 and the last feature map", {"sites": "stage2,final"}),
    ),
    **_of(
        "CIFS, top-k",
        "at_cifs",
        "cifs",
        cifs_top1=("top-1", {"top_k": 1}),
        cifs_top3=("top-3", {"top_k": 3}),
        cifs_top10=("all classes", {"top_k": 10}),
        cifs_class_mix=("a mask for each of two classes, 0.95 of the first", {"class_mix": 0.95}),
    ),
    **_of(
        "CIFS, importance",
        "at_cifs",
        "cifs",
        cifs_sigmoid=("sigmoid", {"importance": "sigmoid"}),
        cifs_softplus=("softplus", {"importance": "softplus"}),
        cifs_scale=("masks twice as large", {"scale": 2.0}),
        cifs_sharp=("temperature 0.5", {"temperature": 0.5}),
    ),
    **_of(
        "CIFS, beta",
        "at_cifs",
        "cifs",
        cifs_beta_01=("beta 0.1", {"beta": 0.1}),
        cifs_beta_10=("beta 10", {"beta": 10.0}),
        cifs_attack_0=("trained against attacks on the network's own logits", {"attack_beta": 0.0}),
    ),
    "cifs_friendly": Ablation(
        "CIFS, friendly adversarial training", "PGD stops a step after success", "at_cifs",
        {"attack.name": "friendly", "attack.tau": 1}, None, "cifs",
    ),
    **_of("FSR", "at_fsr", "adversarial", fsr=("as published: the last feature map, both losses", {})),
    **_of(
        "FSR, parts",
        "at_fsr",
        "fsr",
        fsr_separation=("separation alone: non-robust features dropped", {"parts": "separation"}),
        fsr_recalibration=("recalibration alone, of the whole map", {"parts": "recalibration"}),
        fsr_no_separation_loss=("no separation loss", {"separation_weight": 0.0}),
        fsr_no_recalibration_loss=("no recalibration loss", {"recalibration_weight": 0.0}),
    ),
    **_of(
        "FSR, mask",
        "at_fsr",
        "fsr",
        fsr_no_noise=("no Gumbel noise", {"gumbel_noise": False}),
        fsr_hard=("0 or 1", {"hard_mask": True}),
        fsr_soft=("temperature 1", {"temperature": 1.0}),
    ),
    **_of(
        "FSR, position",
        "at_fsr",
        "fsr",
        fsr_stage1=("stage 1", {"sites": "stage1"}),
        fsr_stage2=("stage 2", {"sites": "stage2"}),
    ),
    **_of("SNS", "at_sns", "adversarial", sns=("every layer, a tenth of the neurons", {})),
    **_of(
        "SNS, layers and neurons",
        "at_sns",
        "sns",
        sns_last=("the last stage's sites", {"sites": "late"}),
        sns_first=("stage 1", {"sites": "stage1"}),
        sns_all=("all neurons (ANP-VS)", {"fraction": 1.0}),
        sns_l2=("the l2 norm of a movement", {"norm": "l2"}),
    ),
    **_of("SNS, loss", "standard_sns", "natural", sns_standard=("natural training", {})),
    **_of("SNS, loss", "trades_sns", "sns", sns_trades=("TRADES", {})),
    **_of(
        "kWTA",
        "at_kwta",
        "adversarial",
        kwta_01=("a tenth kept", {"fraction": 0.1}),
        kwta_05=("half kept", {"fraction": 0.5}),
    ),
    **_sap(
        "natural",
        sap_025=("SAP-25", "sap:fraction=0.25"),
        sap_05=("SAP-50", "sap:fraction=0.5"),
        sap_1=("SAP-100, as published", "sap"),
        sap_last=("SAP-100 at the last stage's sites", "sap:sites=late"),
        dropout=("dropout", "dropout:rate=0.1"),
        noisy_activations=("noise on activations (RNA)", "noise:deviation=0.1"),
        scaled_activations=("activations scaled by noise (RSA)", "noise:deviation=0.1,relative=True"),
        noisy_weights=("noise on weights (RNW)", "noise:deviation=0.01,sites=weights"),
        scaled_weights=("weights scaled by noise (RSW)", "noise:deviation=0.1,relative=True,sites=weights"),
        pruned_weights=("half of the weights pruned (DWP)", "kwta:by_magnitude=True,fraction=0.5,sites=weights"),
        drawn_weights=("weights pruned as SAP prunes activations (SWP)", "sap:sites=weights"),
    ),
    **_sap("adversarial", "at", at_sap=("SAP-100 on an adversarially trained network", "sap")),
    **_sap("cas", "at_cas", cas_sap=("SAP-100 over CAS", "+sap")),
    "mixed": Ablation(
        "SAP, adversarial training", "80 % adversarial, 20 % natural images", "at", {"objective.natural_share": 0.2}
    ),
}  # fmt: skip


def markdown() -> str:
    """The table of the documentation."""
    lines = ["| paper | setting | name | `python -m robustjax.train` with |", "|---|---|---|---|"]
    lines += [
        f"| {one.paper} | {one.setting} | `{name}` | `{one.command()}` |"
        for name, one in ABLATIONS.items()
        if one.paper
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())

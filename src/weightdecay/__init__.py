"""weightdecay: train GPTs with the right weights decaying by the right amount, and prove that they did.

The public names are imported on first use, so that `import weightdecay` (and `weightdecay --help`) loads no torch; type
checkers and editors see them with their types.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as in _PUBLIC; a test compares
    from weightdecay import errors as errors
    from weightdecay import rules as rules
    from weightdecay import schedules as schedules
    from weightdecay.advisor.advice import Advice as Advice
    from weightdecay.advisor.advising import advise as advise
    from weightdecay.auditing.audit import audit as audit
    from weightdecay.auditing.findings import Finding as Finding
    from weightdecay.auditing.forensics.answers import Asked as Asked
    from weightdecay.auditing.forensics.answers import Forensics as Forensics
    from weightdecay.auditing.forensics.answers import Told as Told
    from weightdecay.auditing.forensics.answers import Untold as Untold
    from weightdecay.auditing.forensics.examining import forensics as forensics
    from weightdecay.auditing.live_probe import probe as probe
    from weightdecay.auditing.probed import Probe as Probe
    from weightdecay.auditing.probed import ProbedTensor as ProbedTensor
    from weightdecay.auditing.regrouping import regroup as regroup
    from weightdecay.auditing.result import Audit as Audit
    from weightdecay.diagnosing.diagnosis import Diagnosis as Diagnosis
    from weightdecay.diagnosing.diagnosis import diagnose as diagnose
    from weightdecay.errors import CheckFailedError as CheckFailedError
    from weightdecay.errors import ConfigError as ConfigError
    from weightdecay.errors import DamagedError as DamagedError
    from weightdecay.errors import DataError as DataError
    from weightdecay.errors import MissingExtraError as MissingExtraError
    from weightdecay.errors import OptimizerError as OptimizerError
    from weightdecay.errors import OutOfMemoryError as OutOfMemoryError
    from weightdecay.errors import OutputError as OutputError
    from weightdecay.errors import PlanError as PlanError
    from weightdecay.errors import RecipeError as RecipeError
    from weightdecay.errors import RunBusyError as RunBusyError
    from weightdecay.errors import ScheduleError as ScheduleError
    from weightdecay.errors import StoppedError as StoppedError
    from weightdecay.errors import StorageError as StorageError
    from weightdecay.errors import StorageWarning as StorageWarning
    from weightdecay.errors import TrainingError as TrainingError
    from weightdecay.errors import UsageError as UsageError
    from weightdecay.errors import WeightDecayError as WeightDecayError
    from weightdecay.evaluation.exporting import export as export
    from weightdecay.models.config import ModelConfig as ModelConfig
    from weightdecay.models.decoder import GPT as GPT
    from weightdecay.models.objective import Objective as Objective
    from weightdecay.monitoring.alarms import Alarm as Alarm
    from weightdecay.monitoring.monitor import Monitor as Monitor
    from weightdecay.optim.adafactor import Adafactor as Adafactor
    from weightdecay.optim.adamw import AdamL2 as AdamL2
    from weightdecay.optim.adamw import AdamW as AdamW
    from weightdecay.optim.clipping import ClippedStep as ClippedStep
    from weightdecay.optim.clipping import NonfiniteGradientError as NonfiniteGradientError
    from weightdecay.optim.clipping import clipped_step as clipped_step
    from weightdecay.optim.compiled import CompileWarning as CompileWarning
    from weightdecay.optim.control import Control as Control
    from weightdecay.optim.control import control as control
    from weightdecay.optim.control import controlled as controlled
    from weightdecay.optim.convert import Conversion as Conversion
    from weightdecay.optim.convert import convert as convert
    from weightdecay.optim.lion import Lion as Lion
    from weightdecay.optim.muon import Muon as Muon
    from weightdecay.optim.penalty import penalty as penalty
    from weightdecay.optim.pieces import MasterWarning as MasterWarning
    from weightdecay.optim.precision import PrecisionWarning as PrecisionWarning
    from weightdecay.optim.roundings import Rounding as Rounding
    from weightdecay.optim.scheduling import apply_schedules as apply_schedules
    from weightdecay.optim.sgdw import SGDW as SGDW
    from weightdecay.optim.state.by_name import load_state_by_name as load_state_by_name
    from weightdecay.optim.state.by_name import state_by_name as state_by_name
    from weightdecay.optim.state.settings import Change as Change
    from weightdecay.optim.state.settings import settings_by_name as settings_by_name
    from weightdecay.planning.checking import OptimizerCheck as OptimizerCheck
    from weightdecay.planning.decay_plan import DecayPlan as DecayPlan
    from weightdecay.planning.evidence.batches import BatchWarning as BatchWarning
    from weightdecay.planning.plan import plan as plan
    from weightdecay.planning.planned import PlannedTensor as PlannedTensor
    from weightdecay.planning.policies.overrides import Override as Override
    from weightdecay.planning.policies.role_policies import Decision as Decision
    from weightdecay.planning.policies.role_policies import Policy as Policy
    from weightdecay.planning.roles.roles import Role as Role
    from weightdecay.recipes.schema import Recipe as Recipe
    from weightdecay.recipes.schema import recipe as recipe
    from weightdecay.recipes.settings import TrainConfig as TrainConfig
    from weightdecay.rules import Rule as Rule
    from weightdecay.runs import Run as Run
    from weightdecay.runs import Tracker as Tracker
    from weightdecay.training.trainer import train as train

__version__ = "0.1.0"

# public name -> the module that defines it
_PUBLIC: dict[str, str] = {
    "Advice": "weightdecay.advisor.advice",
    "advise": "weightdecay.advisor.advising",
    "audit": "weightdecay.auditing.audit",
    "Finding": "weightdecay.auditing.findings",
    "Asked": "weightdecay.auditing.forensics.answers",
    "Forensics": "weightdecay.auditing.forensics.answers",
    "Told": "weightdecay.auditing.forensics.answers",
    "Untold": "weightdecay.auditing.forensics.answers",
    "forensics": "weightdecay.auditing.forensics.examining",
    "Probe": "weightdecay.auditing.probed",
    "ProbedTensor": "weightdecay.auditing.probed",
    "probe": "weightdecay.auditing.live_probe",
    "regroup": "weightdecay.auditing.regrouping",
    "Audit": "weightdecay.auditing.result",
    "CheckFailedError": "weightdecay.errors",
    "ConfigError": "weightdecay.errors",
    "DamagedError": "weightdecay.errors",
    "DataError": "weightdecay.errors",
    "MissingExtraError": "weightdecay.errors",
    "OptimizerError": "weightdecay.errors",
    "OutOfMemoryError": "weightdecay.errors",
    "OutputError": "weightdecay.errors",
    "PlanError": "weightdecay.errors",
    "RecipeError": "weightdecay.errors",
    "RunBusyError": "weightdecay.errors",
    "ScheduleError": "weightdecay.errors",
    "StoppedError": "weightdecay.errors",
    "StorageError": "weightdecay.errors",
    "StorageWarning": "weightdecay.errors",
    "TrainingError": "weightdecay.errors",
    "UsageError": "weightdecay.errors",
    "WeightDecayError": "weightdecay.errors",
    "ModelConfig": "weightdecay.models.config",
    "GPT": "weightdecay.models.decoder",
    "Objective": "weightdecay.models.objective",
    "Diagnosis": "weightdecay.diagnosing.diagnosis",
    "diagnose": "weightdecay.diagnosing.diagnosis",
    "Alarm": "weightdecay.monitoring.alarms",
    "Monitor": "weightdecay.monitoring.monitor",
    "Adafactor": "weightdecay.optim.adafactor",
    "AdamL2": "weightdecay.optim.adamw",
    "AdamW": "weightdecay.optim.adamw",
    "ClippedStep": "weightdecay.optim.clipping",
    "NonfiniteGradientError": "weightdecay.optim.clipping",
    "clipped_step": "weightdecay.optim.clipping",
    "CompileWarning": "weightdecay.optim.compiled",
    "Control": "weightdecay.optim.control",
    "control": "weightdecay.optim.control",
    "controlled": "weightdecay.optim.control",
    "Conversion": "weightdecay.optim.convert",
    "convert": "weightdecay.optim.convert",
    "Lion": "weightdecay.optim.lion",
    "Muon": "weightdecay.optim.muon",
    "penalty": "weightdecay.optim.penalty",
    "MasterWarning": "weightdecay.optim.pieces",
    "PrecisionWarning": "weightdecay.optim.precision",
    "Rounding": "weightdecay.optim.roundings",
    "Rule": "weightdecay.rules",
    "apply_schedules": "weightdecay.optim.scheduling",
    "SGDW": "weightdecay.optim.sgdw",
    "load_state_by_name": "weightdecay.optim.state.by_name",
    "state_by_name": "weightdecay.optim.state.by_name",
    "Change": "weightdecay.optim.state.settings",
    "settings_by_name": "weightdecay.optim.state.settings",
    "OptimizerCheck": "weightdecay.planning.checking",
    "DecayPlan": "weightdecay.planning.decay_plan",
    "BatchWarning": "weightdecay.planning.evidence.batches",
    "plan": "weightdecay.planning.plan",
    "PlannedTensor": "weightdecay.planning.planned",
    "Override": "weightdecay.planning.policies.overrides",
    "Decision": "weightdecay.planning.policies.role_policies",
    "Policy": "weightdecay.planning.policies.role_policies",
    "Role": "weightdecay.planning.roles.roles",
    "Recipe": "weightdecay.recipes.schema",
    "recipe": "weightdecay.recipes.schema",
    "TrainConfig": "weightdecay.recipes.settings",
    "Run": "weightdecay.runs",
    "Tracker": "weightdecay.runs",
    "export": "weightdecay.evaluation.exporting",
    "train": "weightdecay.training.trainer",
}
_MODULES = ("errors", "rules", "schedules")

__all__ = [
    "GPT",
    "SGDW",
    "Adafactor",
    "AdamL2",
    "AdamW",
    "Advice",
    "Alarm",
    "Asked",
    "Audit",
    "BatchWarning",
    "Change",
    "CheckFailedError",
    "ClippedStep",
    "CompileWarning",
    "ConfigError",
    "Control",
    "Conversion",
    "DamagedError",
    "DataError",
    "DecayPlan",
    "Decision",
    "Diagnosis",
    "Finding",
    "Forensics",
    "Lion",
    "MasterWarning",
    "MissingExtraError",
    "ModelConfig",
    "Monitor",
    "Muon",
    "NonfiniteGradientError",
    "Objective",
    "OptimizerCheck",
    "OptimizerError",
    "OutOfMemoryError",
    "OutputError",
    "Override",
    "PlanError",
    "PlannedTensor",
    "Policy",
    "PrecisionWarning",
    "Probe",
    "ProbedTensor",
    "Recipe",
    "RecipeError",
    "Role",
    "Rounding",
    "Rule",
    "Run",
    "RunBusyError",
    "ScheduleError",
    "StoppedError",
    "StorageError",
    "StorageWarning",
    "Told",
    "Tracker",
    "TrainConfig",
    "TrainingError",
    "Untold",
    "UsageError",
    "WeightDecayError",
    "__version__",
    "advise",
    "apply_schedules",
    "audit",
    "clipped_step",
    "control",
    "controlled",
    "convert",
    "diagnose",
    "errors",
    "export",
    "forensics",
    "load_state_by_name",
    "penalty",
    "plan",
    "probe",
    "recipe",
    "regroup",
    "rules",
    "schedules",
    "settings_by_name",
    "state_by_name",
    "train",
]


if not TYPE_CHECKING:  # or any name at all would be one to a type checker

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"weightdecay.{name}")
        if name in _PUBLIC:
            return getattr(import_module(_PUBLIC[name]), name)
        raise AttributeError(f"module 'weightdecay' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

from launch.diagnose.diagnosis import diagnose
from launch.report.diagnosis import MAX_FINDINGS, diagnosis_section
from tests.launch.diagnose.crafted import evidence
from tests.launch.diagnose.test_diagnosis import FAULTY
from tests.launch.diagnose.test_matrix import runs


def test_findings_name_their_run_and_the_next_recipe():
    section = diagnosis_section({0: diagnose(evidence()), 3: diagnose(FAULTY["lr-too-high"])})
    assert [(entry["run"], entry["cause"]) for entry in section] == [(3, "lr-too-high")]
    assert section[0]["changes"] == ["- train.lr: 0.1", "+ train.lr: 0.01"]


def test_a_finding_about_all_runs_names_none():
    several = runs({1e-3: [0.80, 0.84, 0.82], 2e-3: [0.81, 0.83, 0.80]})
    section = diagnosis_section({number: diagnose(run) for number, run in enumerate(several)})
    assert [entry["run"] for entry in section if entry["cause"] == "seed-noise"] == [None]


def test_the_section_of_many_runs_is_short():
    assert len(diagnosis_section(dict.fromkeys(range(200), diagnose(FAULTY["diverged"])))) <= MAX_FINDINGS

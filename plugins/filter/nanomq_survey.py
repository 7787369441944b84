# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters around the surveys of AWX: making one, and checking what was answered."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import survey


def nanomq_survey(questions, name=""):
    """Questions as a survey of AWX; AnsibleFilterError names the variable that cannot be asked for."""
    try:
        return survey.survey(questions, name)
    except survey.SurveyError as error:
        raise AnsibleFilterError(f"nanomq_survey: {error}") from None


def nanomq_survey_problems(answers, questions):
    """What is wrong with the answers, a line each; [] if nothing is."""
    try:
        return survey.problems(answers, questions)
    except survey.SurveyError as error:
        raise AnsibleFilterError(f"nanomq_survey_problems: {error}") from None


class FilterModule:
    """The filters of this collection that deal with surveys."""

    def filters(self):
        return {"nanomq_survey": nanomq_survey, "nanomq_survey_problems": nanomq_survey_problems}

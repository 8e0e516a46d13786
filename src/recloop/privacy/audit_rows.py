"""Rows of the audit log, of all subjects or of one person."""

from __future__ import annotations

from recloop.features.id_form import form_id
from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import now
from recloop.storage import forgotten
from recloop.storage.audit import AuditAction, AuditEntry


def audit_rows(project: Project, user_id: str = "") -> list[JsonTree]:
    """Read the rows of the audit log, or those of one person, oldest first."""
    subject = person(project, user_id) if user_id else ""
    return [row.to_json() for row in project.open_control().audit_rows(subject)]


def person(project: Project, user_id: str) -> str:
    """Return the keyed hash that names a person in the audit log."""
    return forgotten.person_hash(project.root, form_id(user_id, project.config.data.id_form))


def record_look(project: Project, user_id: str, action: AuditAction, who: str, details: JsonTree) -> None:
    """Record an action that shows the data of a person."""
    project.open_control().record([AuditEntry(who, action, person(project, user_id), details, now())])

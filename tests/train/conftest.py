"""Tiny teachers, image folders and plans."""

from tests.support.toy_job import job_with
from tests.support.training import picture_folder, pictures, plan_with, teacher_with

__all__ = ["job_with", "picture_folder", "pictures", "plan_with", "teacher_with"]

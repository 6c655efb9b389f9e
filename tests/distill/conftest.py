"""Tiny teachers, image folders and plans."""

from tests.support.training import picture_folder, pictures, plan_with, teacher_with

__all__ = ["picture_folder", "pictures", "plan_with", "teacher_with"]

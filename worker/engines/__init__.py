"""The models behind the step loop. Only here may torch and its libraries be imported."""

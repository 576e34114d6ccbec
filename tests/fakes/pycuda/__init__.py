"""A fake of pycuda: driver.py has what is needed to describe a device."""

"""A worker process:  python -m rtseg_deploy.backends job.json result.json"""
import sys

from ..device import runner
from . import open_session

sys.exit(runner.main(sys.argv[1:], open_session))

"""See `cli`."""

from distributed_provisioner.testing.cli import main

raise SystemExit(main())

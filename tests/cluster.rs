//! Real clusters: `flotilla` processes on loopback, bootstrapped with the CLI as an operator would.

//! Measures each goal in one run. See `README.md`.

fn main() -> anyhow::Result<()> {
    oncekey_compare::goals::main()
}

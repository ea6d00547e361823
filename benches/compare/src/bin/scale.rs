//! How the number of live keys tells on speed, disk and memory. See `README.md`.

fn main() -> anyhow::Result<()> {
    oncekey_compare::scale::main()
}

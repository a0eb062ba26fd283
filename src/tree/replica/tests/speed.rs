//! How fast a new tree is created; run by hand, with `--release -- --ignored`.

use super::*;

/// Set `MIRROR_BENCH_DIR` to the file system to measure.
#[test]
#[ignore = "a measurement"]
fn files_a_second() {
    let base = std::env::var_os("MIRROR_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let temporary = tempfile::tempdir_in(base).unwrap();
    let mut replica = Replica::open(temporary.path()).unwrap();
    let content = vec![b'x'; 5_000];
    let mut items = vec![state("", directory(10))];
    for number in 0..1_000 {
        items.push(state(&format!("d{number}"), directory(10)));
        for file in 0..20 {
            let mut item = inline(&format!("d{number}/f{file}"), regular(5_000), &content);
            if let Item::State { parent_mtime, .. } = &mut item {
                *parent_mtime = Some(directory(10).metadata.mtime);
            }
            items.push(item);
        }
    }
    let run = |replica: &mut Replica, what: &str| {
        let start = std::time::Instant::now();
        for item in &items {
            let raw = if item.raw_bytes() > 0 { &content[..] } else { b"" };
            assert_eq!(replica.apply(item, raw).unwrap(), Applied::default());
        }
        replica.flush();
        let seconds = start.elapsed().as_secs_f64();
        println!("{what}: {:.0} files/s", 20_000.0 / seconds);
    };
    run(&mut replica, "created");
    if std::env::var_os("MIRROR_BENCH_REPLACE").is_some() {
        run(&mut replica, "replaced");
    }
}

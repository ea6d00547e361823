//! The plans of the statements: each reads by the primary key or by the index that was made for it.

use oncekey::sql::postgres::{Client, NoTls};
use oncekey::{Error, admin::RecordFilter, stage::Next};

use crate::engines::{claimed, texts};
use crate::options;
use crate::server::Server;
use crate::stages_in::Boxed;

#[test]
fn no_statement_reads_a_whole_table() {
    let log = "-c session_preload_libraries=auto_explain -c auto_explain.log_min_duration=0
               -c auto_explain.log_level=log -c auto_explain.log_nested_statements=on";
    let server = Server::start(&log.replace('\n', " "));
    let engine = options("plans").connect(&server.url()).unwrap();
    let texts = texts(&engine);
    // Groups, while the table is nearly empty: the server keeps the plan that it makes then.
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let texts = &texts;
            scope.spawn(move || {
                for key in 0..20 {
                    texts.execute(format!("grouped {thread} {key}"), |_| Ok("done".to_owned())).unwrap();
                }
            });
        }
    });
    let reads_before = std::fs::read_to_string(server.dir.join("log")).unwrap().matches("LEFT JOIN").count();
    // Many finished records that were in progress: an index on the state would have an entry for each.
    for key in 0..300 {
        texts.execute(format!("{key}"), |_| Ok("done".to_owned())).unwrap();
    }
    // A new key and its ending take one round trip each: nothing is read first.
    let reads = std::fs::read_to_string(server.dir.join("log")).unwrap().matches("LEFT JOIN").count();
    assert!(reads - reads_before < 10, "{} reads in 300 cycles", reads - reads_before);
    let mut claim = claimed(texts.begin("k").unwrap());
    claim
        .work_stage(|tx| {
            tx.table("t")?.insert("a", "b")?;
            tx.table("t")?.remove("c")?;
            assert_eq!(tx.table("t")?.iter().count(), 1);
            Ok::<_, Error>(Next::advance("on"))
        })
        .unwrap();
    let mut client = Client::connect(&server.url(), NoTls).unwrap();
    claim.work_stage_in(&mut client, |_| Ok::<_, Boxed>(Next::advance("in a transaction of the user"))).unwrap();
    claim.succeed(&"done".to_owned()).unwrap();
    claimed(texts.begin("released").unwrap()).release().unwrap();
    assert_eq!(engine.records(RecordFilter::new()).unwrap().count(), 622);
    assert_eq!(engine.interrupted().unwrap().count(), 0);
    assert!(texts.forget("k").unwrap());
    engine.compact_now().unwrap();
    engine.close().unwrap();

    let log = std::fs::read_to_string(server.dir.join("log")).unwrap();
    let uses = |index: &str| log.contains(&format!("using {index}"));
    assert!(uses("records_pkey") && uses("rows_pkey") && uses("records_due"), "the log has the plans");
    // Leave out the statement that creates the tables, which contains the text of a function.
    let plans: Vec<&str> = log.split("plan:").skip(1).filter(|plan| !plan.contains("CREATE SCHEMA")).collect();
    for plan in &plans {
        // The table `store` has one row, so its scan is right.
        let whole = plan.lines().find(|line| line.contains("Seq Scan on") && !line.contains("Seq Scan on store"));
        assert!(whole.is_none(), "{plan}");
        // A statement that names a key uses no other index.
        let by_key = plan.contains("key = $2") || plan.contains("UPDATE");
        assert!(!(by_key && plan.contains("records_unfinished")), "{plan}");
    }
    let of_stages = |plan: &&&str| plan.contains("Update on records") && plan.contains("staged");
    assert!(plans.iter().filter(of_stages).count() > 0, "no stage of the user");
    // Both group statements: each looks up key by key.
    for target in ["Insert on records", "Update on records"] {
        let of_groups = || plans.iter().filter(|plan| plan.contains("Function Scan on") && plan.contains(target));
        assert!(of_groups().count() > 0, "no group: {target}");
        for plan in of_groups() {
            assert_eq!(plan.matches("Index Cond: ((manager = a.manager) AND (key = a.key))").count(), 1, "{plan}");
            assert_eq!(plan.matches("using records_").count(), 1, "{plan}");
        }
    }
    assert!(plans.len() > 600, "{} plans", plans.len());
}


fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::open("payments.oncekey")?;
    let post = |key: &str, body: &str| {
        let request = Request::post("/payments").header("content-type", "application/json");
        request.header("idempotency-key", key).body(body.to_owned()).unwrap()
    };
    let serve = |user: &str, key: &str, body: &str| serve(&engine, user, &post(key, body)).unwrap();
    let is_replayed = |answer: &http::Response<Vec<u8>>| answer.headers().contains_key("idempotent-replayed");

    let first = serve("ada", "k1", r#"{"to":"eve","cents":1999}"#);
    assert!(first.status() == 201 && !is_replayed(&first), "{first:?}");
    let again = serve("ada", "k1", r#"{ "cents": 1999.0, "to": "eve" }"#);
    assert!(is_replayed(&again) && again.body() == first.body(), "JSON in another order: {again:?}");
    let other = serve("ada", "k1", r#"{"to":"eve","cents":2999}"#);
    assert!(other.status() == 422, "another payment: {other:?}");

    let of_eve = serve("eve", "k1", r#"{"to":"eve","cents":1999}"#);
    assert!(of_eve.status() == 201 && !is_replayed(&of_eve) && of_eve.body() != first.body(), "{of_eve:?}");

    let refused = serve("ada", "k2", r#"{"to":"eve"}"#);
    assert!(refused.status() == 400, "{refused:?}");
    let corrected = serve("ada", "k2", r#"{"to":"eve","cents":5}"#);
    assert!(corrected.status() == 201 && !is_replayed(&corrected), "{corrected:?}");

    // Another thread is at work on this key.
    let owner = engine.requests("payments")?.scoped("ada")?.manager().begin("k3")?.into_claim().map_err(|_| "not free")?;
    let waited = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| serve("ada", "k3", r#"{"to":"eve","cents":7}"#));
        while engine.stats().waiting == 0 {
            std::thread::yield_now();
        }
        owner.succeed(&Response::new(StatusCode::CREATED).body("paid")).map(|_| waiter.join().unwrap())
    })?;
    assert!(is_replayed(&waited) && waited.body() == b"paid", "{waited:?}");
    println!("reordered JSON, tenants, classification, waiting: as the guide says");
    Ok(engine.close()?)
}

# The binary alone, for the gateway (`boute serve`) and everything else.
#   docker build -t boute . && docker run --rm boute --version
FROM rust:1.95-slim-trixie AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package boute

FROM debian:trixie-slim
RUN useradd --system --no-create-home --uid 10001 boute
COPY --from=build /src/target/release/boute /usr/local/bin/boute
COPY LICENSE DATA-LICENSES.md /usr/share/doc/boute/
# By number: Kubernetes cannot tell from a name that it is not root.
USER 10001
EXPOSE 8080 8081
ENTRYPOINT ["boute"]
